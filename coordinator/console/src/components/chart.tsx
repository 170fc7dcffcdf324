import type { ECharts, EChartsCoreOption } from "echarts/core";
import { useEffect, useRef } from "react";
import { useCell } from "../lib/cell";
import { useText } from "../lib/i18n";
import { theme } from "../lib/settings";

export interface Series {
  name: string;
  /** One for each of the chart's points; null where there is none. */
  values: (number | null)[];
  kind?: "line" | "bar";
  /** Series with the same name of a stack stand on each other. */
  stack?: string;
  /** A line that is a plan or a limit, not a measurement. */
  dashed?: boolean;
}

export interface ChartProps {
  /** What it shows, in a sentence: the name of the picture. */
  label: string;
  /** What the points are: "Round". */
  across: string;
  points: (string | number)[];
  series: Series[];
  /** A value as a person reads it. */
  show: (value: number) => string;
  /** The same on the axis, where it may be shorter. */
  axis?: (value: number) => string;
  /** Where the axis begins and ends, if not where the values do. */
  least?: number;
  most?: number;
}

const COLOURS = ["--chart-1", "--chart-2", "--chart-3", "--chart-4", "--chart-5"];

function option(props: ChartProps, colour: (name: string) => string): EChartsCoreOption {
  const soft = colour("--text-soft");
  return {
    // Data comes twice a second: what grew anew each time would never be still.
    animation: false,
    color: COLOURS.map(colour),
    textStyle: { fontFamily: colour("--font"), color: soft },
    grid: {
      left: 4,
      right: 12,
      top: props.series.length > 1 ? 34 : 14,
      bottom: 2,
      containLabel: true,
    },
    legend: {
      show: props.series.length > 1,
      // One line, whatever its length.
      type: "scroll",
      pageIconColor: soft,
      pageTextStyle: { color: soft },
      left: 0,
      top: 0,
      itemHeight: 8,
      itemWidth: 16,
      textStyle: { color: soft },
    },
    tooltip: {
      trigger: "axis",
      // Drawn on the canvas: as HTML it would come with `style` attributes.
      renderMode: "richText",
      backgroundColor: colour("--raised"),
      borderColor: colour("--line-strong"),
      textStyle: { color: colour("--text") },
      valueFormatter: (value: unknown) => (typeof value === "number" ? props.show(value) : "–"),
    },
    xAxis: {
      type: "category",
      data: props.points.map(String),
      axisLine: { lineStyle: { color: colour("--line-strong") } },
      axisTick: { show: false },
      axisLabel: { color: soft, hideOverlap: true },
      boundaryGap: props.series.some((each) => each.kind === "bar"),
    },
    yAxis: {
      type: "value",
      min: props.least,
      max: props.most,
      scale: props.least === undefined,
      ...(props.least === undefined || props.most === undefined
        ? {}
        : { interval: (props.most - props.least) / 4 }),
      splitNumber: 4,
      axisLabel: { color: soft, formatter: props.axis ?? props.show },
      splitLine: { lineStyle: { color: colour("--line") } },
    },
    series: props.series.map((each) => ({
      name: each.name,
      type: each.kind ?? "line",
      data: each.values,
      ...(each.stack ? { stack: each.stack } : {}),
      barMaxWidth: 28,
      showSymbol: props.points.length < 30,
      symbolSize: 6,
      connectNulls: true,
      lineStyle: { width: 2, type: each.dashed ? "dashed" : "solid" },
    })),
  };
}

/** A picture, and the same numbers as a table for who cannot see it or wants them exactly. */
export function Chart(props: ChartProps) {
  const t = useText();
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<ECharts | null>(null);
  const newest = useRef(props);
  newest.current = props;
  const chosen = useCell(theme);

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    let left = false;
    const draw = () => {
      const style = getComputedStyle(document.documentElement);
      chart.current?.setOption(
        option(newest.current, (name) => style.getPropertyValue(name).trim()),
        { notMerge: true },
      );
    };
    const watcher = new ResizeObserver(() => chart.current?.resize());
    const system = window.matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", draw);
    void import("./echarts").then(({ init }) => {
      if (left) return;
      chart.current = init(element);
      watcher.observe(element);
      draw();
    });
    return () => {
      left = true;
      watcher.disconnect();
      system.removeEventListener("change", draw);
      chart.current?.dispose();
      chart.current = null;
    };
  }, []);

  const drawn = JSON.stringify([props.points, props.series, props.label, chosen]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: what is drawn, as a text
  useEffect(() => {
    const style = getComputedStyle(document.documentElement);
    chart.current?.setOption(
      option(newest.current, (name) => style.getPropertyValue(name).trim()),
      { notMerge: true },
    );
  }, [drawn]);

  return (
    <figure className="chart">
      <div ref={place} className="chart-canvas" role="img" aria-label={props.label} />
      <details>
        <summary>{t("common.as-table")}</summary>
        <div className="table-scroll">
          <table className="table" aria-label={props.label}>
            <thead>
              <tr>
                <th scope="col">{props.across}</th>
                {props.series.map((each) => (
                  <th key={each.name} scope="col" data-align="right">
                    {each.name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {props.points.map((point, at) => (
                <tr key={point}>
                  <th scope="row">{point}</th>
                  {props.series.map((each) => {
                    const value = each.values[at];
                    return (
                      <td key={each.name} data-align="right">
                        {value === null || value === undefined ? "–" : props.show(value)}
                      </td>
                    );
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}
