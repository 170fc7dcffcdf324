/** Models: what is served, what each pass of an import bought, and what devices were given. */

import { part } from "../api/api";
import type { ModelSummary, ModelView, PassView, ReleaseView } from "../api/types";
import { useListing, useResource } from "../api/use_resource";
import {
  Badge,
  Card,
  Empty,
  Facts,
  Notice,
  PageHead,
  ProblemNotice,
  Skeleton,
  Time,
} from "../components/basic";
import { Copy } from "../components/copy";
import { type Column, Table } from "../components/table";
import { ENGINE_STATES } from "../components/tones";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { address, go } from "../lib/router";

export function Models() {
  const t = useText();
  const f = useFormat();
  const models = useListing<ModelSummary>("/api/v1/models");
  const columns: Column<ModelSummary>[] = [
    {
      id: "model",
      head: t("models.model"),
      cell: (row) => <a href={address("models", row.name)}>{row.name}</a>,
      sort: (row) => row.name,
    },
    { id: "served", head: t("models.served"), cell: (row) => <Served model={row} /> },
    { id: "made-of", head: t("models.made-of"), cell: (row) => row.imported?.source },
    { id: "quantised", head: t("models.quantised"), cell: (row) => row.imported?.quantise },
    {
      id: "size",
      head: t("models.size"),
      cell: (row) => row.imported && f.bytes(row.imported.bytes),
      sort: (row) => row.imported?.bytes ?? 0,
      align: "right",
    },
  ];
  return (
    <div className="page">
      <PageHead title={t("models.title")} about={t("models.about")} />
      <ProblemNotice problem={models.problem} retry={models.reload} />
      <Card flush>
        <Table
          label={t("models.title")}
          columns={columns}
          rows={models.items}
          rowId={(row) => row.name}
          loading={models.loading}
          onOpen={(row) => go("models", row.name)}
          onMore={models.more ? models.next : undefined}
          empty={
            <Empty icon="models" title={t("models.empty")}>
              <p>{t("models.empty.about")}</p>
              <Copy text="llmos model import FOLDER" />
            </Empty>
          }
        />
      </Card>
      <Releases />
    </div>
  );
}

function Served({ model }: { model: ModelSummary }) {
  const t = useText();
  const code = useCode();
  return (
    <span className="row">
      {model.served.map((each) => (
        <Badge key={each.kind} tone={ENGINE_STATES[each.state]}>
          {code("kind", each.kind)}: {code("engine", each.state)}
        </Badge>
      ))}
      {model.served.some((each) => each.stand_in) && (
        <Badge tone="warn">{t("models.stand-in")}</Badge>
      )}
      {model.damaged && <Badge tone="bad">{t("models.damaged")}</Badge>}
    </span>
  );
}

function Releases() {
  const t = useText();
  const f = useFormat();
  const releases = useListing<ReleaseView>("/api/v1/releases");
  const columns: Column<ReleaseView>[] = [
    {
      id: "run",
      head: t("models.run"),
      cell: (row) => <a href={address("runs", row.run)}>{row.run}</a>,
    },
    { id: "when", head: t("models.when"), cell: (row) => <Time at={row.at} /> },
    {
      id: "adapter",
      head: t("models.adapter"),
      cell: (row) => <code title={row.adapter}>{row.adapter.slice(0, 12)}</code>,
    },
    {
      id: "accuracy",
      head: t("models.accuracy"),
      cell: (row) => (row.accuracy === null ? "–" : f.percent(row.accuracy)),
      align: "right",
    },
    {
      id: "devices",
      head: t("models.devices"),
      cell: (row) => f.number(row.devices),
      align: "right",
    },
  ];
  return (
    <Card title={t("models.releases")} about={t("models.releases.about")} flush>
      <ProblemNotice problem={releases.problem} retry={releases.reload} />
      <Table
        label={t("models.releases")}
        columns={columns}
        rows={releases.items}
        rowId={(row) => row.run}
        loading={releases.loading}
        onMore={releases.more ? releases.next : undefined}
        empty={<Empty icon="models" title={t("models.no-releases")} />}
      />
    </Card>
  );
}

export function Model({ name }: { name: string }) {
  const t = useText();
  const { data: model, problem, reload } = useResource<ModelView>(`/api/v1/models/${part(name)}`);
  return (
    <div className="page">
      <PageHead
        title={name}
        up={{ href: address("models"), text: t("models.title") }}
        badge={model && <Served model={model} />}
      />
      <ProblemNotice problem={problem} retry={reload} />
      {model ? <Shown model={model} /> : !problem && <Skeleton lines={6} />}
    </div>
  );
}

function Shown({ model }: { model: ModelView }) {
  const t = useText();
  const f = useFormat();
  const { imported } = model;
  const columns: Column<PassView>[] = [
    { id: "pass", head: t("models.pass"), cell: (row) => <Pass name={row.name} /> },
    { id: "nodes", head: t("models.nodes"), cell: (row) => f.number(row.nodes), align: "right" },
    { id: "size", head: t("models.size"), cell: (row) => f.bytes(row.bytes), align: "right" },
    {
      id: "p50-32",
      head: t("models.p50-32"),
      cell: (row) => t("models.ms", { n: f.number(row.p50_ms_32, 2) }),
      align: "right",
    },
    {
      id: "p50-128",
      head: t("models.p50-128"),
      cell: (row) => t("models.ms", { n: f.number(row.p50_ms_128, 2) }),
      align: "right",
    },
    {
      id: "agreement",
      head: t("models.agreement"),
      cell: (row) => f.percent(row.agreement),
      align: "right",
    },
  ];
  return (
    <>
      {model.damaged && <Notice tone="bad">{model.damaged}</Notice>}
      {model.served
        .filter((each) => each.reason)
        .map((each) => (
          <Notice key={each.kind} tone="bad">
            {each.reason}
          </Notice>
        ))}
      {imported && (
        <Card title={t("models.made-of")}>
          <Facts
            of={[
              [t("models.made-of"), imported.source],
              [
                t("models.architecture"),
                t("models.layers", { name: imported.architecture, n: imported.layers }),
              ],
              [t("models.quantised"), imported.quantise],
              [t("models.size"), f.bytes(imported.bytes)],
              [t("models.digest"), <code key="digest">{imported.digest}</code>],
            ]}
          />
        </Card>
      )}
      <Card title={t("models.passes")} about={t("models.passes.about")} flush>
        <Table
          label={t("models.passes")}
          columns={columns}
          rows={model.passes}
          rowId={(row) => row.name}
          empty={
            <Empty icon="models" title={t("models.no-passes")}>
              <p>{t("models.no-passes.about")}</p>
            </Empty>
          }
        />
      </Card>
    </>
  );
}

function Pass({ name }: { name: string }) {
  const code = useCode();
  return <>{code("pass", name)}</>;
}
