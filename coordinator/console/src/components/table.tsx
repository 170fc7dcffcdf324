import type { ReactNode } from "react";

export interface Column<Row> {
  name: string;
  show: (row: Row) => ReactNode;
  /** Numbers stand at the end of a line. */
  end?: boolean;
}

/** Rows of one kind. The caption is read out; where there are no rows, `empty` stands instead. */
export function Table<Row>({
  caption,
  columns,
  rows,
  keyOf,
  empty,
}: {
  caption: string;
  columns: Column<Row>[];
  rows: Row[];
  keyOf: (row: Row) => string | number;
  empty?: ReactNode;
}) {
  if (rows.length === 0 && empty) return <div className="table-frame">{empty}</div>;
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a frame that scrolls must take the keyboard
    <section className="table-frame" tabIndex={0} aria-label={caption}>
      <table>
        <caption className="only-read-out">{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column.name} scope="col" className={column.end ? "end" : ""}>
                {column.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map((column) => (
                <td key={column.name} className={column.end ? "end" : ""}>
                  {column.show(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
