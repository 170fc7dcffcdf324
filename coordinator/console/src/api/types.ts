/** What the API answers, by name; `schema.ts` is made of the coordinator's OpenAPI document. */

import type { components } from "./schema";

type Schemas = components["schemas"];

export type RunSummary = Schemas["RunSummary"];
export type RoundNow = Schemas["RoundNow"];
export type Participation = Schemas["Participation"];

export type DeviceSummary = Schemas["DeviceSummary"];
export type DeviceView = Schemas["DeviceView"];

/** Topic `fleet` of the live feed. */
export interface FleetNow {
  at: number;
  counts: Record<string, number>;
  devices: Record<string, DeviceSummary>;
  /** So many devices more than are listed. */
  more?: number;
}

/** Topic `runs` of the live feed. */
export interface RunsNow {
  runs: Record<string, RunSummary>;
}

/** One round, as `GET /api/v1/runs/{run}` tells it. */
export interface RoundView {
  round: number;
  state: string;
  invited: number;
  committed: number;
  reported: number;
  /** Reasons, by device. */
  declined: Record<string, string>;
  /** By group; `""` is the whole probe set. */
  accuracy: Record<string, number>;
  loss?: number | null;
  /** What the devices' own held-out examples said: `score`, and `count` of them. */
  evaluated: { score?: number; count?: number };
  saturated?: number | null;
  accepted?: boolean | null;
  reason: string;
  began_at: number;
  changed_at: number;
}

/** The privacy card of a run. */
export interface Privacy {
  parties: { party: string; sees: string[]; never: string[] }[];
  epsilon: {
    spent?: number | null;
    planned?: number | null;
    delta: number;
    unit: string;
  };
  bytes: {
    sent_to_devices?: number | null;
    received?: number | null;
    by_round?: Record<string, number>;
  };
  gates: { gate: string; passed: boolean; detail: string }[];
  scheme: string;
  min_devices: number;
}

/** Topic `run/ID` of the live feed. A member that would be null may be left out. */
export interface RunNow {
  summary: RunSummary;
  now?: RoundNow | null;
  rounds: Record<string, RoundView>;
  privacy?: Privacy | null;
}

export type ModelSummary = Schemas["ModelSummary"];
export type ModelView = Schemas["ModelView"];
export type PassView = Schemas["PassView"];
export type ReleaseView = Schemas["ReleaseView"];
export type UseView = Schemas["UseView"];

/** One language model in the topic `serving`; counts are since the coordinator began. */
export interface ServedNow {
  state: string;
  reason: string;
  slots: number;
  active: number;
  queue: number;
  requests: number;
  prompt_tokens: number;
  completion_tokens: number;
  /** Over the last 30 seconds. */
  tokens_per_s: number;
  /** Seconds; empty before the first request. */
  first_token_s: { p50?: number; p95?: number };
  cache_hits: number;
  cache_lookups: number;
}

/** Topic `serving` of the live feed. */
export interface ServingNow {
  models: Record<string, ServedNow>;
}

export type Alarm = Schemas["AlarmView"];

/** Topic `alarms` of the live feed: those that nobody acknowledged. A member that would be null is left out. */
export interface AlarmsNow {
  open: number;
  /** The newest, by id. */
  alarms: Record<string, Alarm>;
}

/** A key without its secret. */
export interface ApiKey {
  name: string;
  /** The first letters of its secret. */
  prefix: string;
  role: string;
  models: string[];
  tasks: string[];
  collections: string[];
  created_at: number;
  expires_at: number | null;
  revoked_at: number | null;
  /** Since then it opens nothing, until it is let out. */
  quarantined_at: number | null;
  priority: number;
  /** 0: no limit. */
  tokens_per_minute: number;
  public_cache: boolean;
  /** Until when the secret before the last rotation works. */
  former_ends_at: number | null;
}

export interface Person {
  name: string;
  role: string;
  state: string;
  created_at: number;
  last_login_at: number | null;
}

/** A new link, which is told only now. */
export interface Invitation {
  name: string;
  role: string;
  link: string;
  expires_at: number;
}

export type AuditRecord = Schemas["RecordView"];
