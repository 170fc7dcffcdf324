import { type ReactNode, useEffect, useId, useRef } from "react";
import type { Problem } from "../api/api";
import { useText } from "../lib/i18n";
import { ProblemNotice } from "./basic";
import { Button } from "./button";

/** Open while it is mounted. Escape, or a click beside it, closes it. */
export function Dialog(props: { title: string; onClose: () => void; children: ReactNode }) {
  const id = useId();
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close();
  }, []);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape does the same, as `cancel`
    <dialog
      ref={dialog}
      className="dialog"
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        props.onClose();
      }}
      onClick={(event) => {
        if (event.target === dialog.current) props.onClose();
      }}
    >
      <div className="stack">
        <h2 id={id}>{props.title}</h2>
        {props.children}
      </div>
    </dialog>
  );
}

/** Asks before something that is hard to undo, and says what will happen. */
export function ConfirmDialog(props: {
  title: string;
  children: ReactNode;
  confirm: string;
  danger?: boolean;
  busy: boolean;
  problem: Problem | null;
  onConfirm: () => void;
  onClose: () => void;
}) {
  const t = useText();
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          if (!props.busy) props.onConfirm();
        }}
      >
        {props.children}
        <ProblemNotice problem={props.problem} />
        <div className="dialog-actions">
          <Button onClick={props.onClose}>{t("common.cancel")}</Button>
          <Button type="submit" kind={props.danger ? "danger" : "primary"} busy={props.busy}>
            {props.confirm}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
