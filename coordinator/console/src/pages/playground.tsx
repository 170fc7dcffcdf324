import { type KeyboardEvent, useEffect, useRef, useState } from "react";
import { chat, type Said } from "../api/chat";
import { call } from "../api/client";
import { Button, Card, Empty, Field, Loading, PageHead, Wrong } from "../components/parts";
import { number } from "../format";
import { useWords } from "../i18n";
import { useRead } from "../state";

interface Served {
  data: { id: string; llmos?: { kind?: string } }[];
}

interface Measured {
  firstMs: number;
  tokensPerS: number | null;
}

/** A conversation with any model, with or without an adapter. It is kept nowhere. */
export function PlaygroundPage() {
  const { t, language } = useWords();
  const models = useRead(() => call<Served>("GET", "/v1/models"));
  const [model, setModel] = useState("");
  const [system, setSystem] = useState("");
  const [temperature, setTemperature] = useState("0.7");
  const [most, setMost] = useState("256");
  const [said, setSaid] = useState<Said[]>([]);
  const [text, setText] = useState("");
  const [measured, setMeasured] = useState<Measured | null>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const stop = useRef<AbortController | null>(null);
  const end = useRef<HTMLDivElement>(null);

  const names = models.answer?.data.map((each) => each.id) ?? [];
  const chosen = model || names[0] || "";
  useEffect(() => () => stop.current?.abort(), []);
  useEffect(() => end.current?.scrollIntoView?.({ block: "nearest" }), [said]);

  const ask = async () => {
    if (!text.trim() || busy) return;
    const before: Said[] = [...said, { role: "user", content: text }];
    setSaid([...before, { role: "assistant", content: "" }]);
    setText("");
    setBusy(true);
    setError(null);
    setMeasured(null);
    const began = performance.now();
    let firstAt: number | null = null;
    let answer = "";
    stop.current = new AbortController();
    try {
      const usage = await chat(
        {
          model: chosen,
          messages: system.trim() ? [{ role: "system", content: system }, ...before] : before,
          temperature: Number(temperature),
          max_tokens: Number(most),
        },
        (words) => {
          firstAt ??= performance.now();
          answer += words;
          setSaid([...before, { role: "assistant", content: answer }]);
        },
        stop.current.signal,
      );
      if (firstAt !== null) {
        const s = (performance.now() - firstAt) / 1000;
        const more = usage ? usage.completion_tokens - 1 : 0;
        setMeasured({
          firstMs: firstAt - began,
          tokensPerS: more > 0 && s > 0 ? more / s : null,
        });
      }
    } catch (caught) {
      if (!stop.current.signal.aborted) {
        setError(caught);
        // What was asked is not lost.
        if (!answer) {
          setSaid(said);
          setText(text);
        }
      }
    } finally {
      setBusy(false);
    }
  };
  const onKey = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) {
      event.preventDefault();
      void ask();
    }
  };

  return (
    <>
      <PageHead title={t("playground.title")} about={t("playground.about")}>
        {said.length > 0 && !busy && (
          <Button
            onClick={() => {
              setSaid([]);
              setMeasured(null);
            }}
          >
            {t("playground.new")}
          </Button>
        )}
      </PageHead>
      <Wrong error={models.error} />
      {!models.answer && !models.error && <Loading />}
      {models.answer && names.length === 0 && (
        <Empty title={t("playground.none")} command="llmos up --model NAME=FOLDER">
          {t("playground.none-about")}
        </Empty>
      )}
      {names.length > 0 && (
        <div className="stack">
          <Card>
            <div className="grid">
              <Field label={t("playground.model")} hint={t("playground.model-about")}>
                {(ids) => (
                  <select
                    {...ids}
                    value={chosen}
                    onChange={(event) => setModel(event.target.value)}
                  >
                    {names.map((name) => (
                      <option key={name}>{name}</option>
                    ))}
                  </select>
                )}
              </Field>
              <Field label={t("playground.temperature")} hint={t("playground.temperature-about")}>
                {(ids) => (
                  <input
                    {...ids}
                    type="number"
                    min="0"
                    max="2"
                    step="0.1"
                    value={temperature}
                    onChange={(event) => setTemperature(event.target.value)}
                  />
                )}
              </Field>
              <Field label={t("playground.most")}>
                {(ids) => (
                  <input
                    {...ids}
                    type="number"
                    min="1"
                    value={most}
                    onChange={(event) => setMost(event.target.value)}
                  />
                )}
              </Field>
            </div>
            <details>
              <summary>{t("playground.system")}</summary>
              <Field label={t("playground.system")} hint={t("playground.system-about")}>
                {(ids) => (
                  <textarea
                    {...ids}
                    value={system}
                    onChange={(event) => setSystem(event.target.value)}
                  />
                )}
              </Field>
            </details>
          </Card>
          <div className="chat" role="log" aria-live="polite" aria-busy={busy}>
            {said.map((each, at) => (
              // biome-ignore lint/suspicious/noArrayIndexKey: a conversation only grows
              <div key={at} className={`said ${each.role}`}>
                <span className="only-read-out">{t(`playground.${each.role}`)}: </span>
                {each.content || (busy ? "…" : "")}
              </div>
            ))}
            <div ref={end} />
          </div>
          <Wrong error={error} />
          {measured && (
            <p className="quiet number">
              {t("playground.first", { ms: number(measured.firstMs, language) })}
              {measured.tokensPerS !== null &&
                ` · ${t("playground.speed", { n: number(measured.tokensPerS, language, 1) })}`}
            </p>
          )}
          <form
            className="stack"
            onSubmit={(event) => {
              event.preventDefault();
              void ask();
            }}
          >
            <Field label={t("playground.ask")} hint={t("playground.ask-about")}>
              {(ids) => (
                <textarea
                  {...ids}
                  value={text}
                  onKeyDown={onKey}
                  onChange={(event) => setText(event.target.value)}
                />
              )}
            </Field>
            <div className="actions">
              {busy ? (
                <Button onClick={() => stop.current?.abort()}>{t("playground.stop")}</Button>
              ) : (
                <Button tone="main" type="submit" disabled={!text.trim()}>
                  {t("playground.send")}
                </Button>
              )}
            </div>
          </form>
        </div>
      )}
    </>
  );
}
