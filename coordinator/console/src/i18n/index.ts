/** All texts: one file per page, one line here for each. */

import { common } from "./common";
import { fleet } from "./fleet";
import { login } from "./login";
import { run } from "./run";
import { runs } from "./runs";
import { submit } from "./submit";

export const texts = { ...common, ...fleet, ...login, ...run, ...runs, ...submit };
