import { render, screen, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it, vi } from "vitest";
import { type Column, Table } from "../src/components/table";

interface Row {
  name: string;
  size: number;
}

const ROWS: Row[] = [
  { name: "b", size: 10 },
  { name: "a", size: 9 },
  { name: "c", size: 100 },
];
const COLUMNS: Column<Row>[] = [
  { id: "name", head: "Name", cell: (row) => row.name, sort: (row) => row.name },
  { id: "size", head: "Size", cell: (row) => row.size, sort: (row) => row.size },
  { id: "act", head: "Act", cell: () => <button type="button">go</button> },
];

function show(onOpen = vi.fn(), rows = ROWS) {
  render(
    <Table
      label="Things"
      columns={COLUMNS}
      rows={rows}
      rowId={(row) => row.name}
      onOpen={onOpen}
      empty={<p>nothing</p>}
    />,
  );
  return onOpen;
}

function names(): (string | null | undefined)[] {
  const [, body] = screen.getAllByRole("rowgroup");
  return within(body as HTMLElement)
    .getAllByRole("row")
    .map((row) => row.querySelector("td")?.textContent);
}

function focused(): string | null | undefined {
  return document.activeElement?.querySelector("td")?.textContent;
}

describe("a table", () => {
  it("is gone through by key, and Enter opens a row", async () => {
    const onOpen = show();
    const [, body] = screen.getAllByRole("rowgroup");
    const stops = [...(body as HTMLElement).querySelectorAll("tr")].filter(
      (row) => row.tabIndex === 0,
    );
    expect(stops).toHaveLength(1);
    stops[0]?.focus();
    await userEvent.keyboard("{ArrowDown}");
    expect(focused()).toBe("a");
    await userEvent.keyboard("{End}{ArrowDown}");
    expect(focused()).toBe("c");
    await userEvent.keyboard("{Home}{ArrowUp}");
    expect(focused()).toBe("b");
    await userEvent.keyboard("{ArrowDown}{Enter}");
    expect(onOpen.mock.calls).toEqual([[ROWS[1]]]);
  });

  it("keeps the place in it for the Tab key", async () => {
    show();
    screen.getAllByRole("row")[1]?.focus();
    await userEvent.keyboard("{ArrowDown}");
    const stops = screen.getAllByRole("row").filter((row) => row.tabIndex === 0);
    expect(stops.map((row) => row.querySelector("td")?.textContent)).toEqual(["a"]);
  });

  it("opens nothing by a button inside a row", async () => {
    const onOpen = show();
    const [button] = screen.getAllByRole("button", { name: "go" });
    await userEvent.click(button as HTMLElement);
    (button as HTMLElement).focus();
    await userEvent.keyboard("{Enter}");
    expect(onOpen).not.toHaveBeenCalled();
    await userEvent.click(screen.getByText("c"));
    expect(onOpen).toHaveBeenCalledExactlyOnceWith(ROWS[2]);
  });

  it("sorts by a column both ways, numbers as numbers, and says so", async () => {
    show();
    await userEvent.click(screen.getByRole("button", { name: "Size" }));
    expect(names()).toEqual(["a", "b", "c"]);
    const head = screen.getByRole("columnheader", { name: /Size/ });
    expect(head.getAttribute("aria-sort")).toBe("ascending");
    await userEvent.click(screen.getByRole("button", { name: /Size/ }));
    expect(names()).toEqual(["c", "b", "a"]);
    expect(head.getAttribute("aria-sort")).toBe("descending");
  });

  it("shows what there is instead of rows", () => {
    show(vi.fn(), []);
    expect(screen.getByText("nothing")).toBeTruthy();
    expect(screen.queryByRole("table")).toBeNull();
  });
});
