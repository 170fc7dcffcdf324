/** All texts: one file per page, one line here for each. */

import { common } from "./common";
import { fleet } from "./fleet";
import { login } from "./login";

export const texts = { ...common, ...fleet, ...login };
