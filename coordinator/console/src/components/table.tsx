import { type KeyboardEvent, type ReactNode, useRef, useState } from "react";
import { useText } from "../lib/i18n";
import { Skeleton } from "./basic";
import { Button } from "./button";

export interface Column<T> {
  id: string;
  head: string;
  cell: (row: T) => ReactNode;
  /** What rows are sorted by where a person asks for it; without, nobody can. */
  sort?: (row: T) => string | number;
  align?: "right";
}

export interface TableProps<T> {
  /** What it lists, for who cannot see it. */
  label: string;
  columns: Column<T>[];
  rows: T[];
  rowId: (row: T) => string;
  /** What there is instead of rows. */
  empty: ReactNode;
  loading?: boolean;
  /** What Enter or a click on a row does. */
  onOpen?: (row: T) => void;
  /** There is another page, and this fetches it. */
  onMore?: (() => void) | undefined;
  /** On narrow screens a row becomes a card, or the table can be scrolled sideways. */
  narrow?: "cards" | "scroll";
}

function compare(a: string | number, b: string | number): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

/**
 * Rows are one stop of the Tab key; up, down, Home and End go from row to row, Enter opens one.
 */
export function Table<T>(props: TableProps<T>) {
  const t = useText();
  const [order, setOrder] = useState<{ id: string; falling: boolean } | null>(null);
  const [active, setActive] = useState<string | null>(null);
  const body = useRef<HTMLTableSectionElement>(null);

  if (props.rows.length === 0) {
    return props.loading ? <Skeleton lines={4} /> : props.empty;
  }

  const by = props.columns.find((column) => column.id === order?.id)?.sort;
  const rows = by ? [...props.rows].sort((a, b) => compare(by(a), by(b))) : props.rows;
  if (by && order?.falling) rows.reverse();
  const ids = rows.map(props.rowId);
  const stop = active !== null && ids.includes(active) ? active : ids[0];

  function move(event: KeyboardEvent, at: number): void {
    // Keys inside a row's own buttons and links are theirs.
    if (event.target !== event.currentTarget) return;
    const row = rows[at];
    if (event.key === "Enter" && props.onOpen && row !== undefined) {
      event.preventDefault();
      props.onOpen(row);
      return;
    }
    const target = {
      ArrowDown: Math.min(at + 1, rows.length - 1),
      ArrowUp: Math.max(at - 1, 0),
      Home: 0,
      End: rows.length - 1,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    setActive(ids[target] ?? null);
    (body.current?.rows[target] as HTMLElement | undefined)?.focus();
  }

  return (
    <>
      <div className="table-scroll">
        <table className="table" aria-label={props.label} data-narrow={props.narrow ?? "cards"}>
          <thead>
            <tr>
              {props.columns.map((column) => {
                const mine = order?.id === column.id;
                const sorted = order?.falling ? "descending" : "ascending";
                return (
                  <th
                    key={column.id}
                    scope="col"
                    data-align={column.align}
                    aria-sort={mine ? sorted : undefined}
                  >
                    {column.sort ? (
                      <button
                        type="button"
                        className="sort"
                        onClick={() =>
                          setOrder({ id: column.id, falling: mine ? !order.falling : false })
                        }
                      >
                        {column.head}
                        <span aria-hidden="true">{mine ? (order.falling ? " ↓" : " ↑") : ""}</span>
                      </button>
                    ) : (
                      column.head
                    )}
                  </th>
                );
              })}
            </tr>
          </thead>
          <tbody ref={body}>
            {rows.map((row, at) => {
              const id = props.rowId(row);
              return (
                <tr
                  key={id}
                  tabIndex={id === stop ? 0 : -1}
                  data-opens={props.onOpen !== undefined}
                  onFocus={() => setActive(id)}
                  onKeyDown={(event) => move(event, at)}
                  onClick={(event) => {
                    // A link, a button or a chosen text in the row is not the row.
                    const inside = (event.target as Element).closest("a, button, input, select");
                    if (!inside && window.getSelection()?.isCollapsed !== false) {
                      props.onOpen?.(row);
                    }
                  }}
                >
                  {props.columns.map((column) => (
                    <td key={column.id} data-label={column.head} data-align={column.align}>
                      {column.cell(row)}
                    </td>
                  ))}
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      {props.onMore && (
        <div className="table-foot">
          <Button busy={props.loading === true} onClick={props.onMore}>
            {t("common.more")}
          </Button>
        </div>
      )}
    </>
  );
}
