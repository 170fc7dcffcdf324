import {
  type ButtonHTMLAttributes,
  createContext,
  type ReactNode,
  useContext,
  useEffect,
  useId,
  useRef,
  useState,
} from "react";
import { Problem } from "../api/client";
import { exact, relative } from "../format";
import { useWords } from "../i18n";

export type Tone = "good" | "warn" | "bad" | "busy" | "";

export function Card({
  title,
  aside,
  children,
}: {
  title?: ReactNode;
  aside?: ReactNode;
  children: ReactNode;
}) {
  return (
    <section className="card">
      {(title || aside) && (
        <header>
          {title && <h2>{title}</h2>}
          {aside}
        </header>
      )}
      {children}
    </section>
  );
}

export function PageHead({
  title,
  about,
  children,
}: {
  title: ReactNode;
  about?: ReactNode;
  children?: ReactNode;
}) {
  return (
    <div className="page-head">
      <div>
        <h1>{title}</h1>
        {about && <p>{about}</p>}
      </div>
      {children && <div className="row">{children}</div>}
    </div>
  );
}

export function Badge({ tone = "", children }: { tone?: Tone; children: ReactNode }) {
  return <span className={`badge ${tone}`}>{children}</span>;
}

export function Figure({
  label,
  value,
  note,
}: {
  label: string;
  value: ReactNode;
  note?: ReactNode;
}) {
  return (
    <dl className="figure">
      <dt>{label}</dt>
      <dd>
        {value}
        {note && <small>{note}</small>}
      </dd>
    </dl>
  );
}

export function Button({
  tone = "",
  small,
  busy,
  className,
  ...rest
}: {
  tone?: "main" | "danger" | "plain" | "";
  small?: boolean;
  busy?: boolean;
} & ButtonHTMLAttributes<HTMLButtonElement>) {
  const classes = ["button", tone, small ? "small" : "", className ?? ""].join(" ");
  return (
    <button
      type="button"
      {...rest}
      className={classes}
      aria-busy={busy}
      disabled={busy || rest.disabled}
    />
  );
}

/** A labelled control with its explanation and what is wrong with it. */
export function Field({
  label,
  hint,
  wrong,
  children,
}: {
  label: string;
  hint?: ReactNode;
  wrong?: string | undefined;
  children: (ids: { id: string; "aria-describedby": string; "aria-invalid": boolean }) => ReactNode;
}) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": `${id}-about`, "aria-invalid": Boolean(wrong) })}
      <div id={`${id}-about`}>
        {wrong && (
          <div className="wrong" role="alert">
            {wrong}
          </div>
        )}
        {hint && <div className="hint">{hint}</div>}
      </div>
    </div>
  );
}

export function Notice({
  tone = "",
  children,
}: {
  tone?: "" | "bad" | "warn";
  children: ReactNode;
}) {
  return (
    <div className={`notice ${tone}`} role={tone === "bad" ? "alert" : "status"}>
      {children}
    </div>
  );
}

/** What went wrong, in words; nothing where nothing did. */
export function Wrong({ error }: { error: unknown }) {
  const { t } = useWords();
  if (!error) return null;
  const text = error instanceof Problem ? error.message : t("common.failed");
  return <Notice tone="bad">{text}</Notice>;
}

/** An empty place that says how it is filled. */
export function Empty({
  title,
  children,
  command,
}: {
  title: string;
  children?: ReactNode;
  command?: string;
}) {
  return (
    <div className="empty">
      <h3>{title}</h3>
      {children && <p>{children}</p>}
      {command && <Copyable text={command} />}
    </div>
  );
}

export function Copyable({ text }: { text: string }) {
  const { t } = useWords();
  const [copied, setCopied] = useState(false);
  return (
    <div className="copyable">
      <code>{text}</code>
      <Button
        small
        onClick={async () => {
          await navigator.clipboard.writeText(text);
          setCopied(true);
        }}
      >
        {copied ? t("common.copied") : t("common.copy")}
      </Button>
    </div>
  );
}

/** A moment, relative to now, and exactly when pointed at. */
export function When({ at }: { at: number | null | undefined }) {
  const { language } = useWords();
  const now = useNow(10_000);
  if (at === null || at === undefined) return <span className="quiet">–</span>;
  const moment = new Date(at * 1000);
  return (
    <time dateTime={moment.toISOString()} title={exact(at, language)}>
      {relative(at, now, language)}
    </time>
  );
}

/** Seconds since the epoch, looked at every `everyMs`. */
export function useNow(everyMs: number): number {
  const [now, setNow] = useState(() => Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

export function Bar({ share, label }: { share: number; label: string }) {
  const percentage = Math.round(Math.max(0, Math.min(1, share)) * 100);
  return (
    <div
      className="bar"
      role="progressbar"
      aria-label={label}
      aria-valuenow={percentage}
      aria-valuemin={0}
      aria-valuemax={100}
    >
      <div style={{ width: `${percentage}%` }} />
    </div>
  );
}

export function Loading({ lines = 4 }: { lines?: number }) {
  const { t } = useWords();
  return (
    <div className="stack" role="status" aria-label={t("common.loading")}>
      {Array.from({ length: lines }, (_, line) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: lines of a placeholder are all alike
        <div key={line} className="ghost" />
      ))}
    </div>
  );
}

/** A modal window. Escape and the background close it; what had the focus gets it back. */
export function Dialog({
  title,
  onClose,
  children,
}: {
  title: string;
  onClose: () => void;
  children: ReactNode;
}) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = ref.current;
    const before = document.activeElement;
    dialog?.showModal();
    return () => {
      dialog?.close();
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog
      ref={ref}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
    >
      <div className="stack">
        <h2 id={id}>{title}</h2>
        {children}
      </div>
    </dialog>
  );
}

/** Asks before something that cannot be taken back; shows why where it failed. */
export function Confirm({
  title,
  children,
  action,
  danger = true,
  onDo,
  onClose,
}: {
  title: string;
  children: ReactNode;
  action: string;
  danger?: boolean;
  onDo: () => Promise<unknown>;
  onClose: () => void;
}) {
  const { t } = useWords();
  const doing = useAction(onDo);
  return (
    <Dialog title={title} onClose={onClose}>
      <div>{children}</div>
      <Wrong error={doing.error} />
      <div className="actions">
        <Button onClick={onClose}>{t("common.cancel")}</Button>
        <Button
          tone={danger ? "danger" : "main"}
          busy={doing.busy}
          onClick={async () => {
            if (await doing.run()) onClose();
          }}
        >
          {action}
        </Button>
      </div>
    </Dialog>
  );
}

/** Something that a button does: whether it is under way, and why it failed. */
export function useAction<Given extends unknown[]>(work: (...given: Given) => Promise<unknown>) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const run = async (...given: Given): Promise<boolean> => {
    setBusy(true);
    setError(null);
    try {
      await work(...given);
      return true;
    } catch (caught) {
      setError(caught);
      return false;
    } finally {
      setBusy(false);
    }
  };
  return { run, busy, error, setError };
}

type Say = (text: string, tone?: "bad" | "") => void;
const Saying = createContext<Say>(() => {});

/** Says something for a few seconds in a corner. */
export function useToast(): Say {
  return useContext(Saying);
}

export function Toasts({ children }: { children: ReactNode }) {
  const [said, setSaid] = useState<{ id: number; text: string; tone: string }[]>([]);
  const next = useRef(0);
  const say: Say = (text, tone = "") => {
    const id = next.current++;
    setSaid((before) => [...before, { id, text, tone }]);
    setTimeout(() => setSaid((before) => before.filter((each) => each.id !== id)), 6000);
  };
  return (
    <Saying.Provider value={say}>
      {children}
      <div className="toasts" role="status" aria-live="polite">
        {said.map((each) => (
          <div key={each.id} className={`toast ${each.tone}`}>
            {each.text}
          </div>
        ))}
      </div>
    </Saying.Provider>
  );
}
