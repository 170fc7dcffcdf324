/**
 * What changes, as it changes: one web socket for the whole console.
 *
 * Whoever shows a topic watches it; the socket asks for all watched topics together, applies
 * merge patches to what it has of each, and connects again where it was cut off.
 */

import { useCallback, useSyncExternalStore } from "react";
import { refusals } from "./api";
import { type Json, mergePatch } from "./merge_patch";

export type Status = "off" | "connecting" | "live" | "waiting";

/** What is known of one topic. */
export interface Topic<T> {
  data: T | null;
  /** Why there is none: a problem's detail. */
  problem: string | null;
}

interface Frame {
  topic?: string;
  snapshot?: Json;
  patch?: Json;
  problem?: { detail?: string; title?: string };
  beat?: number;
}

const NOTHING: Topic<never> = { data: null, problem: null };
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 30_000;
/** A server that is there says so every 15 s. */
const SILENCE_MS = 40_000;
const CREDENTIAL_ENDED = 4401;

export class Live {
  status: Status = "off";
  private readonly address: string;
  private readonly random: () => number;
  private socket: WebSocket | null = null;
  private readonly watchers = new Map<string, number>();
  private readonly topics = new Map<string, Topic<Json>>();
  private readonly followers = new Set<() => void>();
  private again: ReturnType<typeof setTimeout> | undefined;
  private silence: ReturnType<typeof setTimeout> | undefined;
  private failures = 0;
  private asked = "";
  private asking = false;

  constructor(address: string, random: () => number = Math.random) {
    this.address = address;
    this.random = random;
  }

  subscribe = (changed: () => void): (() => void) => {
    this.followers.add(changed);
    return () => this.followers.delete(changed);
  };

  topic(name: string): Topic<Json> {
    return this.topics.get(name) ?? NOTHING;
  }

  /** Watch a topic until the function that this returns is called. */
  watch(name: string): () => void {
    this.watchers.set(name, (this.watchers.get(name) ?? 0) + 1);
    if (this.socket === null && this.again === undefined) this.connect();
    else this.askSoon();
    return () => {
      const left = (this.watchers.get(name) ?? 1) - 1;
      if (left > 0) this.watchers.set(name, left);
      else this.watchers.delete(name);
      this.askSoon();
    };
  }

  /** End the connection; the next `watch` begins one. */
  stop(): void {
    clearTimeout(this.again);
    clearTimeout(this.silence);
    this.again = undefined;
    const socket = this.socket;
    this.socket = null;
    if (socket) {
      socket.onclose = null;
      socket.onmessage = null;
      socket.close();
    }
    this.topics.clear();
    this.failures = 0;
    this.tell("off");
  }

  private connect(): void {
    this.again = undefined;
    this.tell("connecting");
    const socket = new WebSocket(this.address);
    this.socket = socket;
    socket.onopen = () => {
      this.asked = "";
      this.ask();
      this.listen();
      this.tell("live");
    };
    socket.onmessage = (event) => {
      this.failures = 0;
      this.listen();
      this.receive(JSON.parse(String(event.data)) as Frame);
    };
    socket.onclose = (event) => this.closed(event.code);
  }

  /** A page that is left and the next one together change the set once. */
  private askSoon(): void {
    if (this.asking) return;
    this.asking = true;
    queueMicrotask(() => {
      this.asking = false;
      // Not earlier: where the set stays the same no other snapshot comes.
      for (const name of this.topics.keys()) if (!this.watchers.has(name)) this.topics.delete(name);
      this.ask();
    });
  }

  private ask(): void {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    const wanted = [...this.watchers.keys()].sort();
    const text = JSON.stringify({ watch: wanted });
    if (text === this.asked) return;
    this.asked = text;
    this.socket.send(text);
  }

  private listen(): void {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.socket?.close(), SILENCE_MS);
  }

  private receive(frame: Frame): void {
    const name = frame.topic;
    // What was still under way when nobody watched any more.
    if (name === undefined || !this.watchers.has(name)) return;
    if (frame.problem) {
      const problem = frame.problem.detail ?? frame.problem.title ?? "";
      this.topics.set(name, { data: null, problem });
    } else if (frame.snapshot !== undefined) {
      this.topics.set(name, { data: frame.snapshot, problem: null });
    } else if (frame.patch !== undefined) {
      const before = this.topics.get(name)?.data;
      // Watched anew, and the snapshot is still to come.
      if (before == null) return;
      this.topics.set(name, { data: mergePatch(before, frame.patch), problem: null });
    }
    this.tell(this.status);
  }

  private closed(code: number): void {
    clearTimeout(this.silence);
    this.socket = null;
    if (code === CREDENTIAL_ENDED) {
      this.tell("off");
      refusals.set(refusals.get() + 1);
      return;
    }
    // Old numbers stay to be seen, and the status says that they are old.
    const longest = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.failures);
    this.failures += 1;
    this.again = setTimeout(() => this.connect(), longest * (0.5 + this.random() / 2));
    this.tell("waiting");
  }

  private tell(status: Status): void {
    this.status = status;
    for (const follower of [...this.followers]) follower();
  }
}

function feedAddress(): string {
  const { protocol, host } = window.location;
  return `${protocol === "https:" ? "wss" : "ws"}://${host}/api/v1/live`;
}

export const live = new Live(feedAddress());

/** Watch a topic as long as a component shows it; `null` watches nothing. */
export function useLive<T>(name: string | null): Topic<T> {
  const subscribe = useCallback(
    (changed: () => void) => {
      const unsubscribe = live.subscribe(changed);
      const unwatch = name === null ? () => {} : live.watch(name);
      return () => {
        unwatch();
        unsubscribe();
      };
    },
    [name],
  );
  return useSyncExternalStore(subscribe, () =>
    name === null ? NOTHING : live.topic(name),
  ) as Topic<T>;
}

export function useLiveStatus(): Status {
  return useSyncExternalStore(live.subscribe, () => live.status);
}
