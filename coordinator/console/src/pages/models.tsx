import { useState } from "react";
import { call, type Page, path } from "../api/client";
import type { Model, ModelDetails, Release } from "../api/shapes";
import {
  Badge,
  Button,
  Card,
  Dialog,
  Empty,
  Loading,
  Notice,
  PageHead,
  type Tone,
  When,
  Wrong,
} from "../components/parts";
import { Table } from "../components/table";
import { bytes, number, percent, short } from "../format";
import { useWords } from "../i18n";
import { linkTo } from "../router";
import { useRead } from "../state";

export const ENGINE_TONES: Record<string, Tone> = {
  ready: "good",
  loading: "busy",
  failed: "bad",
};

/** What is served and what devices were given, and what each step of making it small bought. */
export function ModelsPage() {
  const { t, code, language } = useWords();
  const [shown, setShown] = useState<string | null>(null);
  const models = useRead(() => call<Page<Model>>("GET", "/api/v1/models?limit=200"));
  const releases = useRead(() => call<Page<Release>>("GET", "/api/v1/releases?limit=50"));
  return (
    <>
      <PageHead title={t("models.title")} about={t("models.about")} />
      <div className="stack">
        <Wrong error={models.error ?? releases.error} />
        {!models.answer && !models.error && <Loading />}
        {models.answer && (
          <Table
            caption={t("models.title")}
            rows={models.answer.items}
            keyOf={(model) => model.name}
            empty={
              <Empty title={t("models.none")} command="llmos model import FOLDER">
                {t("models.none-about")}
              </Empty>
            }
            columns={[
              {
                name: t("models.model"),
                show: (model) => (
                  <Button tone="plain" small onClick={() => setShown(model.name)}>
                    {model.name}
                  </Button>
                ),
              },
              {
                name: t("models.served"),
                show: (model) => (
                  <span className="row">
                    {model.served.map((each) => (
                      <Badge key={each.kind} tone={ENGINE_TONES[each.state] ?? ""}>
                        {code("kind", each.kind)} · {code("engine", each.state)}
                      </Badge>
                    ))}
                    {model.served.some((each) => each.stand_in) && (
                      <Badge tone="warn">{t("models.stand-in")}</Badge>
                    )}
                    {model.damaged && <Badge tone="bad">{t("models.damaged")}</Badge>}
                  </span>
                ),
              },
              { name: t("models.made-of"), show: (model) => model.imported?.source ?? "–" },
              { name: t("models.quantised"), show: (model) => model.imported?.quantise ?? "–" },
              {
                name: t("models.size"),
                end: true,
                show: (model) => (model.imported ? bytes(model.imported.bytes, language) : "–"),
              },
            ]}
          />
        )}
        <Card title={t("models.releases")}>
          <Table
            caption={t("models.releases")}
            rows={releases.answer?.items ?? []}
            keyOf={(release) => release.run}
            empty={<Empty title={t("models.no-releases")}>{t("models.no-releases-about")}</Empty>}
            columns={[
              {
                name: t("runs.run"),
                show: (release) => <a href={linkTo("runs", release.run)}>{release.run}</a>,
              },
              { name: t("models.when"), show: (release) => <When at={release.at} /> },
              {
                name: t("run.adapter"),
                show: (release) => <span className="mono">{short(release.adapter)}</span>,
              },
              {
                name: t("runs.accuracy"),
                end: true,
                show: (release) =>
                  release.accuracy === null ? "–" : percent(release.accuracy, language),
              },
              {
                name: t("models.devices"),
                end: true,
                show: (release) => number(release.devices, language),
              },
            ]}
          />
        </Card>
      </div>
      {shown && <ModelWindow name={shown} onClose={() => setShown(null)} />}
    </>
  );
}

function ModelWindow({ name, onClose }: { name: string; onClose: () => void }) {
  const { t, code, language } = useWords();
  const { answer: model, error } = useRead(
    () => call<ModelDetails>("GET", path`/api/v1/models/${name}`),
    name,
  );
  return (
    <Dialog title={name} onClose={onClose}>
      <Wrong error={error} />
      {!model && !error && <Loading />}
      {model?.damaged && <Notice tone="bad">{model.damaged}</Notice>}
      {model?.served
        .filter((each) => each.reason)
        .map((each) => (
          <Notice key={each.kind} tone="bad">
            {each.reason}
          </Notice>
        ))}
      {model?.imported && (
        <dl className="facts">
          <dt>{t("models.architecture")}</dt>
          <dd>
            {model.imported.architecture}, {number(model.imported.layers, language)}{" "}
            {t("models.layers")}
          </dd>
          <dt>{t("models.size")}</dt>
          <dd>{bytes(model.imported.bytes, language)}</dd>
          <dt>SHA-256</dt>
          <dd className="mono" title={model.imported.digest}>
            {short(model.imported.digest)}
          </dd>
        </dl>
      )}
      {model && model.passes.length > 0 && (
        <Table
          caption={t("models.passes")}
          rows={model.passes}
          keyOf={(each) => each.name}
          columns={[
            { name: t("models.pass"), show: (each) => code("pass", each.name) },
            { name: t("models.size"), end: true, show: (each) => bytes(each.bytes, language) },
            {
              name: t("models.p50"),
              end: true,
              show: (each) => `${number(each.p50_ms_32, language, 2)} ms`,
            },
            {
              name: t("models.agreement"),
              end: true,
              show: (each) => percent(each.agreement, language),
            },
          ]}
        />
      )}
      <div className="actions">
        <Button onClick={onClose}>{t("common.close")}</Button>
      </div>
    </Dialog>
  );
}
