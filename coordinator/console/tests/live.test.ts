import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { refusals } from "../src/api/api";
import { Live } from "../src/api/live";
import { FakeSocket } from "./support/fake_socket";

/** Waits are as long as they can be. */
function feed(): Live {
  return new Live("ws://test/api/v1/live", () => 1);
}

async function settled(): Promise<void> {
  await Promise.resolve();
}

describe("the live feed", () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it("asks for all watched topics on one socket, and again only where the set changed", async () => {
    const live = feed();
    live.watch("fleet");
    const leave = live.watch("runs");
    expect(FakeSocket.made).toHaveLength(1);
    const socket = FakeSocket.last();
    socket.open();
    expect(socket.watched).toEqual(["fleet", "runs"]);
    const again = live.watch("runs");
    leave();
    await settled();
    expect(socket.sent).toHaveLength(1);
    socket.says({ topic: "runs", snapshot: { runs: {} } });
    again();
    await settled();
    expect(socket.watched).toEqual(["fleet"]);
    expect(live.topic("runs").data).toBeNull();
    live.stop();
  });

  it("shows a snapshot, then what patches make of it", () => {
    const live = feed();
    let told = 0;
    live.subscribe(() => {
      told += 1;
    });
    live.watch("fleet");
    const socket = FakeSocket.last();
    socket.open();
    socket.says({ topic: "fleet", snapshot: { counts: { idle: 2, away: 1 } } });
    const before = told;
    socket.says({ topic: "fleet", patch: { counts: { idle: 3, away: null } } });
    expect(live.topic("fleet").data).toEqual({ counts: { idle: 3 } });
    expect(told).toBe(before + 1);
    live.stop();
  });

  it("tells of a topic that may not be read", () => {
    const live = feed();
    live.watch("run/x");
    FakeSocket.last().open();
    FakeSocket.last().says({ topic: "run/x", problem: { detail: "no run x" } });
    expect(live.topic("run/x")).toEqual({ data: null, problem: "no run x" });
    live.stop();
  });

  it("takes nothing for a topic that nobody watches any more", async () => {
    const live = feed();
    const leave = live.watch("fleet");
    live.watch("runs");
    FakeSocket.last().open();
    leave();
    FakeSocket.last().says({ topic: "fleet", snapshot: { at: 1 } });
    expect(live.topic("fleet").data).toBeNull();
    live.stop();
  });

  it("keeps a topic that one page leaves and the next one watches at once", async () => {
    const live = feed();
    const leave = live.watch("fleet");
    const socket = FakeSocket.last();
    socket.open();
    socket.says({ topic: "fleet", snapshot: { counts: { idle: 2 } } });
    leave();
    live.watch("fleet");
    await settled();
    // The set is the same, so nothing is asked for and no other snapshot comes.
    expect(socket.sent).toHaveLength(1);
    expect(live.topic("fleet").data).toEqual({ counts: { idle: 2 } });
    socket.says({ topic: "fleet", patch: { counts: { idle: 3 } } });
    expect(live.topic("fleet").data).toEqual({ counts: { idle: 3 } });
    live.stop();
  });

  it("waits for a snapshot after it was watched anew", () => {
    const live = feed();
    live.watch("fleet");
    FakeSocket.last().open();
    FakeSocket.last().says({ topic: "fleet", patch: { at: 1 } });
    expect(live.topic("fleet").data).toBeNull();
    live.stop();
  });

  it("connects again, ever later, and keeps showing what it had", () => {
    const live = feed();
    live.watch("fleet");
    FakeSocket.last().open();
    FakeSocket.last().says({ topic: "fleet", snapshot: { at: 1 } });
    for (const wait of [500, 1000, 2000]) {
      const count = FakeSocket.made.length;
      FakeSocket.last().close(1006);
      expect(live.status).toBe("waiting");
      vi.advanceTimersByTime(wait - 1);
      expect(FakeSocket.made).toHaveLength(count);
      vi.advanceTimersByTime(1);
      expect(FakeSocket.made).toHaveLength(count + 1);
    }
    expect(live.topic("fleet").data).toEqual({ at: 1 });
    FakeSocket.last().open();
    expect(FakeSocket.last().watched).toEqual(["fleet"]);
    expect(live.status).toBe("live");
    live.stop();
  });

  it("never waits longer than half a minute, and begins anew once it was told something", () => {
    const live = feed();
    live.watch("fleet");
    for (let times = 0; times < 12; times += 1) {
      FakeSocket.last().close(1006);
      vi.advanceTimersByTime(30_000);
    }
    expect(FakeSocket.made).toHaveLength(13);
    FakeSocket.last().open();
    FakeSocket.last().says({ beat: 1 });
    FakeSocket.last().close(1006);
    vi.advanceTimersByTime(500);
    expect(FakeSocket.made).toHaveLength(14);
    live.stop();
  });

  it("hangs up where there is silence", () => {
    const live = feed();
    live.watch("fleet");
    FakeSocket.last().open();
    vi.advanceTimersByTime(39_000);
    FakeSocket.last().says({ beat: 1 });
    vi.advanceTimersByTime(39_000);
    expect(live.status).toBe("live");
    vi.advanceTimersByTime(1000);
    expect(live.status).toBe("waiting");
    live.stop();
  });

  it("does not try again with a credential that has ended, but asks to log in", () => {
    const before = refusals.get();
    const live = feed();
    live.watch("fleet");
    FakeSocket.last().open();
    FakeSocket.last().close(4401);
    vi.advanceTimersByTime(100_000);
    expect(FakeSocket.made).toHaveLength(1);
    expect(refusals.get()).toBe(before + 1);
    expect(live.status).toBe("off");
  });
});
