/** All pages: what is in this list is in the navigation of those whose role may open it. */

import type { ReactNode } from "react";
import type { IconName } from "./components/icon";
import type { Key } from "./lib/i18n";
import { AUDITING, READING, type Role } from "./lib/session";
import { Alarms } from "./pages/alarms";
import { Audit } from "./pages/audit";
import { Device } from "./pages/device";
import { Fleet } from "./pages/fleet";
import { Keys } from "./pages/keys";
import { Model, Models } from "./pages/models";
import { People } from "./pages/people";
import { Playground } from "./pages/playground";
import { Run } from "./pages/run";
import { Runs } from "./pages/runs";
import { Serving } from "./pages/serving";
import { NEW_RUN, Submit } from "./pages/submit";

export interface PageEntry {
  /** First part of the address: `#/fleet`. */
  path: string;
  title: Key;
  icon: IconName;
  /** As coordinator/api/roles.py has it for what the page asks for. */
  roles: readonly Role[];
  /** `rest` is what the address has behind the path: `#/runs/tickets` is `["tickets"]`. */
  show: (rest: string[]) => ReactNode;
}

export const PAGES: readonly PageEntry[] = [
  {
    path: "fleet",
    title: "fleet.title",
    icon: "fleet",
    roles: READING,
    show: ([name]) => (name === undefined ? <Fleet /> : <Device name={name} />),
  },
  {
    path: "runs",
    title: "runs.title",
    icon: "runs",
    roles: READING,
    show: ([run]) => {
      if (run === undefined) return <Runs />;
      return run === NEW_RUN ? <Submit /> : <Run run={run} />;
    },
  },
  {
    path: "models",
    title: "models.title",
    icon: "models",
    roles: READING,
    // A model may be called after a folder, with a slash in it.
    show: (name) => (name.length === 0 ? <Models /> : <Model name={name.join("/")} />),
  },
  {
    path: "playground",
    title: "playground.title",
    icon: "playground",
    roles: ["caller", "operator", "admin"],
    show: () => <Playground />,
  },
  {
    path: "serving",
    title: "serving.title",
    icon: "serving",
    roles: READING,
    show: () => <Serving />,
  },
  {
    path: "alarms",
    title: "alarms.title",
    icon: "alarms",
    roles: [...READING, "auditor"],
    show: () => <Alarms />,
  },
  {
    path: "audit",
    title: "audit.title",
    icon: "audit",
    roles: AUDITING,
    show: () => <Audit />,
  },
  { path: "keys", title: "keys.title", icon: "keys", roles: AUDITING, show: () => <Keys /> },
  {
    path: "people",
    title: "people.title",
    icon: "people",
    roles: AUDITING,
    show: () => <People />,
  },
];
