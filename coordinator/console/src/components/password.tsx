import { useState } from "react";
import { api } from "../api/api";
import { useAction } from "../api/use_resource";
import { useText } from "../lib/i18n";
import { ConfirmDialog } from "./dialog";
import { TextField } from "./field";
import { toast } from "./toast";

const SHORTEST = 12;

/** Sets another password for who is logged in; their other sessions end. */
export function PasswordDialog({ onClose }: { onClose: () => void }) {
  const t = useText();
  const [old, setOld] = useState("");
  const [next, setNext] = useState("");
  const [again, setAgain] = useState("");
  const [tried, setTried] = useState(false);
  const short = next.length < SHORTEST;
  const differ = again !== next;
  const changing = useAction(async () => {
    await api.put("/api/v1/session/password", { old, new: next });
    toast(t("login.change.done"));
    onClose();
  });
  return (
    <ConfirmDialog
      title={t("login.change")}
      confirm={t("login.change")}
      busy={changing.busy}
      problem={changing.problem}
      onConfirm={() => {
        setTried(true);
        if (!short && !differ) void changing.run();
      }}
      onClose={onClose}
    >
      <p>{t("login.change.about")}</p>
      <TextField
        label={t("login.change.old")}
        type="password"
        autoComplete="current-password"
        required
        value={old}
        onChange={setOld}
      />
      <TextField
        label={t("login.change.new")}
        hint={t("login.password.hint")}
        error={tried && short ? t("login.too-short") : undefined}
        type="password"
        autoComplete="new-password"
        value={next}
        onChange={setNext}
      />
      <TextField
        label={t("login.password-again")}
        error={tried && differ ? t("login.differ") : undefined}
        type="password"
        autoComplete="new-password"
        value={again}
        onChange={setAgain}
      />
    </ConfirmDialog>
  );
}
