/** What the API answers, by name; `schema.ts` is made of the coordinator's OpenAPI document. */

import type { components } from "./schema";

type Schemas = components["schemas"];

export type RunSummary = Schemas["RunSummary"];
export type RoundNow = Schemas["RoundNow"];
export type Participation = Schemas["Participation"];

/** `standing` is there as soon as the coordinator can quarantine devices. */
export type DeviceSummary = Schemas["DeviceSummary"] & { standing?: string };
export type DeviceView = Schemas["DeviceView"] & { standing?: string };

/** Topic `fleet` of the live feed. */
export interface FleetNow {
  at: number;
  counts: Record<string, number>;
  devices: Record<string, DeviceSummary>;
  /** So many devices more than are listed. */
  more?: number;
}
