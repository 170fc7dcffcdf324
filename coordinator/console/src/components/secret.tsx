import type { ReactNode } from "react";
import { useWords } from "../i18n";
import { Button, Copyable, Dialog, Notice } from "./parts";

/** Shows what can be read only now. Closing forgets it. */
export function SecretOnce({
  title,
  secret,
  onClose,
  children,
}: {
  title: string;
  secret: string;
  onClose: () => void;
  children?: ReactNode;
}) {
  const { t } = useWords();
  return (
    <Dialog title={title} onClose={onClose}>
      <Notice tone="warn">{t("common.only-now")}</Notice>
      <Copyable text={secret} />
      {children}
      <div className="actions">
        <Button tone="main" onClick={onClose}>
          {t("common.kept")}
        </Button>
      </div>
    </Dialog>
  );
}
