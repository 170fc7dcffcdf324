import { cell, useCell } from "../lib/cell";
import { useText } from "../lib/i18n";

interface Toast {
  id: number;
  text: string;
}

const SHOWN_MS = 6000;
const shown = cell<Toast[]>([]);
let last = 0;

function remove(id: number): void {
  shown.set(shown.get().filter((each) => each.id !== id));
}

/** Say in passing that something was done. What went wrong is said where it was asked for. */
export function toast(text: string): void {
  last += 1;
  const id = last;
  shown.set([...shown.get(), { id, text }]);
  setTimeout(() => remove(id), SHOWN_MS);
}

export function Toasts() {
  const t = useText();
  return (
    <div className="toasts" role="status" aria-live="polite">
      {useCell(shown).map((each) => (
        <div key={each.id} className="toast">
          {each.text}
          <button type="button" aria-label={t("common.close")} onClick={() => remove(each.id)}>
            ✕
          </button>
        </div>
      ))}
    </div>
  );
}
