import type { ReactNode } from "react";
import { useText } from "../lib/i18n";
import { Notice } from "./basic";
import { Button } from "./button";
import { Copy } from "./copy";
import { Dialog } from "./dialog";

/** Shows what can be read only now; closing forgets it. */
export function SecretOnce(props: {
  title: string;
  about: string;
  secret: string;
  onClose: () => void;
  children?: ReactNode;
}) {
  const t = useText();
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <Notice tone="warn">{props.about}</Notice>
      <Copy text={props.secret} />
      {props.children}
      <div className="dialog-actions">
        <Button kind="primary" onClick={props.onClose}>
          {t("keys.secret.kept")}
        </Button>
      </div>
    </Dialog>
  );
}
