/** Small parts of every page. */

import { type ReactNode, useEffect, useId } from "react";
import type { Problem } from "../api/api";
import { useFormat } from "../lib/format";
import { useText } from "../lib/i18n";
import { useNow } from "../lib/now";
import { Button } from "./button";
import { Icon, type IconName } from "./icon";

export type Tone = "good" | "warn" | "bad" | "accent";

/** A text whose commands stand in backticks. */
export function withCode(text: string): ReactNode {
  // Every second piece was between two backticks.
  // biome-ignore lint/suspicious/noArrayIndexKey: pieces of one text keep their places
  return text.split("`").map((piece, at) => (at % 2 ? <code key={at}>{piece}</code> : piece));
}

export function PageHead(props: {
  title: string;
  about?: ReactNode;
  /** Where the page belongs to: a link above the title. */
  up?: { href: string; text: string };
  badge?: ReactNode;
  actions?: ReactNode;
}) {
  useEffect(() => {
    document.title = `${props.title} · LLM OS`;
  }, [props.title]);
  return (
    <header className="page-head">
      <div>
        {props.up && (
          <a className="crumb" href={props.up.href}>
            ← {props.up.text}
          </a>
        )}
        <div className="page-title">
          <h1 className="break">{props.title}</h1>
          {props.badge}
        </div>
        {props.about && <p>{props.about}</p>}
      </div>
      {props.actions && <div className="row">{props.actions}</div>}
    </header>
  );
}

export function Card(props: {
  title?: string;
  about?: ReactNode;
  actions?: ReactNode;
  /** Without room around what is in it: for tables. */
  flush?: boolean;
  children: ReactNode;
}) {
  const id = useId();
  return (
    <section className="card" aria-labelledby={props.title ? id : undefined}>
      {props.title && (
        <div className="card-head">
          <h2 id={id}>{props.title}</h2>
          {props.actions}
          {props.about && <p>{props.about}</p>}
        </div>
      )}
      <div className="card-body" data-flush={props.flush}>
        {props.children}
      </div>
    </section>
  );
}

export function Stats({ children }: { children: ReactNode }) {
  return <dl className="stats">{children}</dl>;
}

export function Stat(props: { name: string; children: ReactNode; note?: ReactNode }) {
  return (
    <div className="stat">
      <dt>{props.name}</dt>
      <dd>
        {props.children}
        {props.note && <div className="stat-note">{props.note}</div>}
      </dd>
    </div>
  );
}

export function Badge({ tone, children }: { tone?: Tone | undefined; children: ReactNode }) {
  return (
    <span className="badge" data-tone={tone}>
      {children}
    </span>
  );
}

/** A name and what it is, pair by pair; what is null is left out. Wide: side by side. */
export function Facts({ of, wide }: { of: [string, ReactNode][]; wide?: boolean }) {
  return (
    <dl className="facts" data-wide={wide}>
      {of
        .filter(([, value]) => value !== null && value !== undefined && value !== "")
        .map(([name, value]) =>
          wide ? (
            <div key={name}>
              <dt>{name}</dt>
              <dd className="numeric">{value}</dd>
            </div>
          ) : (
            [<dt key={`${name}-name`}>{name}</dt>, <dd key={name}>{value}</dd>]
          ),
        )}
    </dl>
  );
}

export function Empty(props: { icon: IconName; title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <Icon name={props.icon} size={40} />
      <h3>{props.title}</h3>
      {props.children}
    </div>
  );
}

export function Skeleton({ lines = 3 }: { lines?: number }) {
  const t = useText();
  return (
    <div className="skeleton" role="status" aria-label={t("common.loading")}>
      {Array.from({ length: lines }, (_, at) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: lines without content
        <i key={at} />
      ))}
    </div>
  );
}

export function Notice(props: { tone?: Tone; children: ReactNode; action?: ReactNode }) {
  return (
    <div className="notice" data-tone={props.tone} role={props.tone === "bad" ? "alert" : "status"}>
      <div>{props.children}</div>
      {props.action}
    </div>
  );
}

/** Why something did not come about, and another try where there is one. */
export function ProblemNotice(props: { problem: Problem | null; retry?: () => void }) {
  const t = useText();
  if (!props.problem) return null;
  const { status, message, retryAfter } = props.problem;
  return (
    <Notice
      tone="bad"
      action={props.retry && <Button onClick={props.retry}>{t("common.retry")}</Button>}
    >
      {status === 0 && message === "" ? t("common.unreachable") : message}
      {retryAfter !== null && ` ${t("common.retry-after", { seconds: retryAfter })}`}
    </Notice>
  );
}

/** A moment as passed time; exactly where somebody points at it. */
export function Time({ at }: { at: number | null }) {
  const f = useFormat();
  const t = useText();
  const now = useNow();
  if (at === null) return <span className="soft">{t("common.never")}</span>;
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={f.exact(at)}>
      {f.relative(at, now)}
    </time>
  );
}

export function Progress(props: { label: string; done: number; of: number; tone?: Tone }) {
  const share = props.of > 0 ? Math.min(1, Math.max(0, props.done / props.of)) : 0;
  return (
    <div
      className="progress"
      role="progressbar"
      aria-label={props.label}
      aria-valuemin={0}
      aria-valuemax={props.of}
      aria-valuenow={props.done}
      aria-valuetext={props.label}
    >
      <span className="small soft">{props.label}</span>
      <div className="progress-track">
        <div
          className="progress-done"
          data-tone={props.tone}
          style={{ transform: `scaleX(${share})` }}
        />
      </div>
    </div>
  );
}
