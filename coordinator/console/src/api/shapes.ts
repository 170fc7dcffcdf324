import type { components } from "./schema";

type Schemas = components["schemas"];

export type Role = "caller" | "viewer" | "auditor" | "operator" | "admin" | "device";

/** `GET /api/v1/session`. */
export interface Session {
  name: string | null;
  role: Role | null;
  kind: "person" | "key" | "token" | null;
  /** Nobody has an account yet. */
  first: boolean;
  oidc: boolean;
}

export interface Link {
  purpose: "first" | "invite" | "reset";
  name: string | null;
  role: Role;
  expires_at: number;
}

export interface Person {
  name: string;
  role: Role;
  state: "invited" | "active" | "disabled";
  created_at: number;
  last_login_at: number | null;
}

export interface Invitation {
  name: string;
  role: Role;
  link: string;
  expires_at: number;
}

export type Standing = "trusted" | "quarantined" | "revoked";
export type Device = Schemas["DeviceSummary"] & { standing?: Standing };
export type DeviceDetails = Schemas["DeviceView"] & { standing?: Standing };
export type RunSummary = Schemas["RunSummary"];
export type RoundNow = Schemas["RoundNow"];
export type Model = Schemas["ModelSummary"];
export type ModelDetails = Schemas["ModelView"];
export type Release = Schemas["ReleaseView"];
export type Use = Schemas["UseView"];
export type AuditRecord = Schemas["RecordView"];
export type Overview = Schemas["Overview"];

/** One round as `GET /api/v1/runs/{run}` gives it. In merge patches what is null is left out. */
export interface Round {
  round: number;
  state: string;
  invited: number;
  committed: number;
  reported: number;
  declined: Record<string, string>;
  accuracy: Record<string, number>;
  loss?: number | null;
  evaluated: Record<string, number>;
  saturated?: number | null;
  accepted?: boolean | null;
  reason: string;
  began_at: number;
  changed_at: number;
}

export interface Privacy {
  parties: { party: string; sees: string[]; never: string[] }[];
  epsilon: { spent?: number | null; planned?: number | null; delta?: number; unit: string };
  bytes: { received?: number | null; by_round: Record<string, number> };
  gates: { gate: string; passed: boolean; detail: string }[];
  scheme: string;
  min_devices: number;
}

export interface FleetState {
  at: number;
  counts: Record<string, number>;
  devices: Record<string, Device>;
  more?: number;
}

export interface RunsState {
  runs: Record<string, RunSummary>;
}

export interface RunState {
  summary: RunSummary;
  now?: RoundNow | null;
  rounds: Record<string, Round>;
  privacy: Privacy;
}

export interface ServedNow {
  state: string;
  reason: string;
  slots: number;
  active: number;
  queue: number;
  requests: number;
  prompt_tokens: number;
  completion_tokens: number;
  tokens_per_s: number;
  first_token_s?: { p50?: number; p95?: number };
  cache_hits: number;
  cache_lookups: number;
}

export interface ServingState {
  models: Record<string, ServedNow>;
}

export interface Alarm {
  id: number;
  at: number;
  rule: string;
  severity: "info" | "warning" | "critical";
  subject: { kind: string; name: string };
  detail: string;
  count: number;
  last_at: number;
  action: "none" | "quarantined";
  acknowledged_at?: number | null;
  acknowledged_by: string;
}

export interface AlarmsState {
  open: number;
  alarms: Record<string, Alarm>;
}

export interface Key {
  name: string;
  prefix: string;
  role: Role;
  models: string[];
  tasks: string[];
  collections: string[];
  created_at: number;
  expires_at: number | null;
  revoked_at: number | null;
  priority: number;
  tokens_per_minute: number;
  public_cache: boolean;
  former_ends_at: number | null;
  quarantined_at?: number | null;
}
