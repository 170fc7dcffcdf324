/** Who could see what in a run, what privacy it cost, what left devices, and which checks held. */

import type { Privacy } from "../api/types";
import { useFormat } from "../lib/format";
import { useCode, useText } from "../lib/i18n";
import { Badge, Card, Facts, Progress } from "./basic";

export function PrivacyCard({ privacy }: { privacy: Privacy }) {
  const t = useText();
  const code = useCode();
  const f = useFormat();
  const { spent, planned, delta, unit } = privacy.epsilon;
  const { received, sent_to_devices: sent } = privacy.bytes;
  const bytes = (count: number | null | undefined) =>
    count == null ? t("privacy.unknown") : f.bytes(count);
  return (
    <Card title={t("privacy.title")} about={t("privacy.about")}>
      <div className="stack">
        {planned == null ? (
          <p>
            <Badge tone="warn">ε = ∞</Badge> {t("privacy.epsilon.unbounded")}
          </p>
        ) : (
          <div className="stack-tight">
            <Progress
              label={`${t("privacy.epsilon")}: ${t("privacy.epsilon.share", {
                spent: spent == null ? "–" : f.number(spent, 3),
                planned: f.number(planned, 3),
              })}`}
              done={spent ?? 0}
              of={planned}
              {...((spent ?? 0) > planned ? { tone: "bad" as const } : {})}
            />
            <p className="soft small">
              {t("privacy.epsilon.about", { unit: code("unit", unit), delta: delta.toString() })}
            </p>
          </div>
        )}
        <Facts
          of={[
            [t("privacy.scheme"), code("scheme", privacy.scheme)],
            [t("privacy.least"), f.number(privacy.min_devices)],
            [t("privacy.out"), bytes(received)],
            [t("privacy.in"), bytes(sent)],
          ]}
        />
        <div className="table-scroll">
          <table className="table" aria-label={t("privacy.title")} data-narrow="cards">
            <thead>
              <tr>
                <th scope="col">{t("privacy.party")}</th>
                <th scope="col">{t("privacy.sees")}</th>
                <th scope="col">{t("privacy.never")}</th>
              </tr>
            </thead>
            <tbody>
              {privacy.parties.map((each) => (
                <tr key={each.party} className="party">
                  <td data-label={t("privacy.party")}>{code("party", each.party)}</td>
                  <td data-label={t("privacy.sees")}>
                    <Things of={each.sees} />
                  </td>
                  <td data-label={t("privacy.never")}>
                    <Things of={each.never} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
        {privacy.gates.length > 0 && (
          <div>
            <h3>{t("privacy.gates")}</h3>
            <ul className="gates">
              {privacy.gates.map((each) => (
                <li key={each.gate}>
                  <Badge tone={each.passed ? "good" : "warn"}>
                    {each.passed ? t("privacy.gate.passed") : t("privacy.gate.failed")}
                  </Badge>
                  <span>
                    {code("gate", each.gate)} <span className="soft">{each.detail}</span>
                  </span>
                </li>
              ))}
            </ul>
          </div>
        )}
      </div>
    </Card>
  );
}

function Things({ of }: { of: string[] }) {
  const code = useCode();
  if (of.length === 0) return "–";
  return (
    <ul>
      {of.map((each) => (
        <li key={each}>{code("seen", each)}</li>
      ))}
    </ul>
  );
}
