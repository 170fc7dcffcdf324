import type { ReactNode } from "react";

export interface ButtonProps {
  children: ReactNode;
  kind?: "primary" | "danger" | "quiet";
  type?: "button" | "submit";
  /** Under way: it says so, stays focused, and does nothing more. */
  busy?: boolean;
  disabled?: boolean;
  label?: string;
  onClick?: () => void;
}

export function Button(props: ButtonProps) {
  const off = props.busy === true || props.disabled === true;
  // Not `disabled`: that would take the focus from who works with the keyboard.
  return (
    <button
      type={props.type ?? "button"}
      className="button"
      data-kind={props.kind}
      aria-busy={props.busy || undefined}
      aria-disabled={off || undefined}
      aria-label={props.label}
      onClick={(event) => {
        if (off) event.preventDefault();
        else props.onClick?.();
      }}
    >
      {props.children}
    </button>
  );
}
