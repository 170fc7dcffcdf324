import type { Privacy, RoundView, RunNow, RunSummary } from "../../src/api/types";

export const SUMMARY: RunSummary = {
  run: "tickets",
  task: "text-classification",
  state: "running",
  reason: "",
  submitted_at: 1_700_000_000,
  ended_at: null,
  round: 2,
  rounds: 10,
  accuracy: { "": 0.5 },
  epsilon: 8,
  adapter: "",
  release: {},
};

export function round(number: number, changes: Partial<RoundView> = {}): RoundView {
  return {
    round: number,
    state: "applied",
    invited: 16,
    committed: 15,
    reported: 14,
    declined: { cellar: "budget" },
    accuracy: { "": 0.5 },
    loss: 1.25,
    evaluated: {},
    saturated: 0.01,
    accepted: true,
    reason: "",
    began_at: 1_700_000_000,
    changed_at: 1_700_000_075,
    ...changes,
  };
}

export const PRIVACY: Privacy = {
  parties: [
    { party: "device", sees: ["records", "adapter"], never: [] },
    {
      party: "coordinator",
      sees: ["encrypted_update", "sum"],
      never: ["records", "noised_update"],
    },
    { party: "key_holder", sees: ["round_key", "sum", "participation"], never: ["records"] },
    { party: "broker", sees: ["encrypted_update", "sum"], never: ["records", "noised_update"] },
    { party: "other_devices", sees: ["adapter"], never: ["records", "noised_update", "sum"] },
  ],
  epsilon: { spent: 1.5, planned: 8, delta: 0.00001, unit: "record" },
  bytes: { sent_to_devices: null, received: 3_400_000, by_round: { "1": 1_700_000 } },
  gates: [
    { gate: "min_devices", passed: true, detail: "14 of at least 8" },
    { gate: "release", passed: false, detail: "accuracy is not judged yet" },
  ],
  scheme: "public-key",
  min_devices: 8,
};

export const RUN_NOW: RunNow = {
  summary: SUMMARY,
  now: {
    round: 2,
    state: "gathering",
    cohort: 16,
    committed: 14,
    declined: 1,
    updates: 9,
    bytes: 1_048_576,
    changed_at: 1_700_000_100,
  },
  rounds: {
    "1": round(1),
    "2": round(2, { state: "gathering", reported: 9, accuracy: {}, loss: null, accepted: null }),
  },
  privacy: PRIVACY,
};
