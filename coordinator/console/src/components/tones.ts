/** Which colour a state has, the same on every page. Codes that are not here have none. */

import type { Tone } from "./basic";

type Tones = Readonly<Record<string, Tone>>;

export const STATES: Tones = { idle: "good", training: "accent" };
export const STANDINGS: Tones = { quarantined: "warn", revoked: "bad" };
export const RUN_STATES: Tones = {
  preparing: "warn",
  running: "accent",
  finished: "good",
  failed: "bad",
};
export const ROUND_STATES: Tones = { applied: "good", failed: "bad" };
export const ENGINE_STATES: Tones = { loading: "warn", ready: "good", failed: "bad" };
export const KEY_STATES: Tones = { active: "good", quarantined: "warn", revoked: "bad" };
export const SEVERITIES: Tones = { info: "accent", warning: "warn", critical: "bad" };
export const PERSON_STATES: Tones = { invited: "accent", active: "good" };
