import { useText } from "../lib/i18n";
import { Button } from "./button";
import { toast } from "./toast";

/** A command or a secret, with a button that copies it. */
export function Copy({ text }: { text: string }) {
  const t = useText();
  return (
    <span className="copy">
      <code>{text}</code>
      <Button
        kind="quiet"
        label={t("common.copy-what", { what: text })}
        onClick={() => {
          // Browsers offer no clipboard to pages that came over plain HTTP from another machine.
          const copied = navigator.clipboard?.writeText(text) ?? Promise.reject(new Error());
          copied.then(
            () => toast(t("common.copied")),
            () => toast(t("common.not-copied")),
          );
        }}
      >
        {t("common.copy")}
      </Button>
    </span>
  );
}
