import { type Json, mergePatch } from "./merge_patch";

/** What is shown of the connection: `off` before the first watcher and after the last. */
export type Connection = "off" | "connecting" | "open" | "waiting";

type Watcher = () => void;

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
/** Three beats: a connection that is silent for so long is dead, whatever the network says. */
const SILENCE_MS = 45_000;

/**
 * The one socket of a page: watches topics, keeps what each last was, and comes back by itself.
 *
 * After a connection was lost the last state stays shown until the next snapshot replaces it.
 */
export class Live {
  private socket: WebSocket | null = null;
  private watchers = new Map<string, Set<Watcher>>();
  private states = new Map<string, Json>();
  private problems = new Map<string, string>();
  private connectionWatchers = new Set<Watcher>();
  private wait = FIRST_WAIT_MS;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private silence: ReturnType<typeof setTimeout> | undefined;
  connection: Connection = "off";

  constructor(
    private readonly url: () => string,
    private readonly onRefused: () => void,
  ) {}

  /** What a topic was when it was last told; undefined before the first snapshot. */
  state(topic: string): Json | undefined {
    return this.states.get(topic);
  }

  /** Why a topic is not told; undefined where it is. */
  problem(topic: string): string | undefined {
    return this.problems.get(topic);
  }

  /** Calls `watcher` after every change of `topic`; the function given ends that. */
  watch(topic: string, watcher: Watcher): () => void {
    const those = this.watchers.get(topic) ?? new Set();
    this.watchers.set(topic, those.add(watcher));
    if (those.size === 1) this.subscribe();
    if (!this.socket && this.timer === undefined) this.connect();
    return () => {
      those.delete(watcher);
      if (those.size > 0) return;
      this.watchers.delete(topic);
      this.states.delete(topic);
      this.problems.delete(topic);
      if (this.watchers.size > 0) this.subscribe();
      else this.close();
    };
  }

  /** Calls `watcher` after every change of {@link connection}. */
  watchConnection(watcher: Watcher): () => void {
    this.connectionWatchers.add(watcher);
    return () => this.connectionWatchers.delete(watcher);
  }

  private connect(): void {
    this.timer = undefined;
    this.become("connecting");
    const socket = new WebSocket(this.url());
    this.socket = socket;
    socket.onopen = () => {
      this.wait = FIRST_WAIT_MS;
      this.become("open");
      this.subscribe();
      this.heard();
    };
    socket.onmessage = (event) => {
      this.heard();
      this.take(JSON.parse(String(event.data)));
    };
    socket.onclose = (event) => this.lost(socket, event.code);
  }

  private take(message: {
    topic?: string;
    snapshot?: Json;
    patch?: Json;
    problem?: { detail?: string };
  }): void {
    const { topic } = message;
    if (topic === undefined || !this.watchers.has(topic)) return;
    if (message.problem) {
      this.problems.set(topic, message.problem.detail ?? "");
    } else {
      this.problems.delete(topic);
      this.states.set(
        topic,
        message.snapshot === undefined
          ? mergePatch(this.states.get(topic), message.patch ?? {})
          : message.snapshot,
      );
    }
    for (const watcher of this.watchers.get(topic) ?? []) watcher();
  }

  private lost(socket: WebSocket, code: number): void {
    if (socket !== this.socket) return;
    clearTimeout(this.silence);
    this.socket = null;
    if (code === 4401) {
      this.become("off");
      this.onRefused();
    } else if (this.watchers.size > 0) {
      this.become("waiting");
      // Pages that were all cut off at once do not all come back at once.
      this.timer = setTimeout(() => this.connect(), this.wait * (0.5 + Math.random() / 2));
      this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
    }
  }

  private subscribe(): void {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify({ watch: [...this.watchers.keys()].sort() }));
    }
  }

  private heard(): void {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => {
      const socket = this.socket;
      socket?.close();
      // `close` waits for the other side, which may be gone.
      if (socket) this.lost(socket, 1006);
    }, SILENCE_MS);
  }

  private close(): void {
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    this.timer = undefined;
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.become("off");
  }

  private become(connection: Connection): void {
    this.connection = connection;
    for (const watcher of this.connectionWatchers) watcher();
  }
}
