import { BarChart, LineChart } from "echarts/charts";
import {
  AriaComponent,
  GridComponent,
  LegendComponent,
  TooltipComponent,
} from "echarts/components";
import * as echarts from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";
import { useEffect, useRef } from "react";
import { useWords } from "../i18n";

echarts.use([
  AriaComponent,
  BarChart,
  GridComponent,
  LegendComponent,
  LineChart,
  CanvasRenderer,
  TooltipComponent,
]);

export interface Series {
  name: string;
  values: (number | null)[];
}

/** Lines or bars over common places; the same numbers stand in a table for who cannot see them. */
export function Chart({
  title,
  places,
  series,
  bars,
  format = String,
  range,
}: {
  title: string;
  places: (string | number)[];
  series: Series[];
  bars?: boolean;
  format?: (value: number) => string;
  range?: [number, number];
}) {
  const ref = useRef<HTMLDivElement>(null);
  const chart = useRef<echarts.ECharts | null>(null);
  const { t } = useWords();

  useEffect(() => {
    const element = ref.current;
    // A page that is not laid out, as in tests, has no room for a drawing.
    if (!element?.clientWidth) return;
    const made = echarts.init(element);
    chart.current = made;
    const sizes = new ResizeObserver(() => made.resize());
    sizes.observe(element);
    return () => {
      sizes.disconnect();
      made.dispose();
      chart.current = null;
    };
  }, []);

  useEffect(() => {
    const drawing = chart.current;
    if (!drawing) return;
    const colour = (name: string) => usedColour(ref.current!, name);
    const quiet = colour("--quiet");
    drawing.setOption(
      {
        animation: false,
        color: ["--accent", "--warn", "--good", "--bad"].map(colour),
        textStyle: { fontFamily: "inherit", color: quiet },
        grid: {
          left: 8,
          right: 12,
          top: series.length > 1 ? 34 : 14,
          bottom: 4,
          containLabel: true,
        },
        legend: {
          show: series.length > 1,
          top: 0,
          left: 0,
          textStyle: { color: quiet },
          itemHeight: 8,
        },
        // Drawn by the chart: a window of its own would carry styles that the page's policy forbids.
        tooltip: {
          trigger: "axis",
          renderMode: "richText",
          valueFormatter: (v: unknown) => told(v, format),
        },
        xAxis: {
          type: "category",
          data: places.map(String),
          axisLine: { lineStyle: { color: colour("--line") } },
          axisLabel: { color: quiet },
          axisTick: { show: false },
        },
        yAxis: {
          type: "value",
          scale: !bars && !range,
          ...(range ? { min: range[0], max: range[1] } : {}),
          splitLine: { lineStyle: { color: colour("--line") } },
          axisLabel: { color: quiet, formatter: format },
        },
        series: series.map((each) => ({
          name: each.name,
          type: bars ? "bar" : "line",
          data: each.values,
          connectNulls: true,
          symbolSize: 5,
          showSymbol: each.values.length < 60,
          barMaxWidth: 26,
          itemStyle: bars ? { borderRadius: [3, 3, 0, 0] } : {},
        })),
      },
      { notMerge: true },
    );
  });

  return (
    <figure>
      <div ref={ref} className="chart" aria-hidden="true" />
      <table className="only-read-out">
        <caption>{title}</caption>
        <thead>
          <tr>
            <th scope="col">{t("common.place")}</th>
            {series.map((each) => (
              <th key={each.name} scope="col">
                {each.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {places.map((place, at) => (
            <tr key={place}>
              <th scope="row">{place}</th>
              {series.map((each) => (
                <td key={each.name}>{told(each.values[at], format)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </figure>
  );
}

function told(value: unknown, format: (value: number) => string): string {
  return typeof value === "number" ? format(value) : "–";
}

/** A custom property as a colour that a drawing understands: `light-dark()` is resolved. */
function usedColour(element: HTMLElement, name: string): string {
  const before = element.style.color;
  element.style.color = `var(${name})`;
  const used = getComputedStyle(element).color;
  element.style.color = before;
  return used;
}
