/** All texts: one file per page, one line here for each. */

import { alarms } from "./alarms";
import { audit } from "./audit";
import { common } from "./common";
import { fleet } from "./fleet";
import { keys } from "./keys";
import { login } from "./login";
import { models } from "./models";
import { people } from "./people";
import { playground } from "./playground";
import { run } from "./run";
import { runs } from "./runs";
import { serving } from "./serving";
import { submit } from "./submit";

export const texts = {
  ...alarms,
  ...audit,
  ...common,
  ...fleet,
  ...keys,
  ...login,
  ...models,
  ...people,
  ...playground,
  ...run,
  ...runs,
  ...serving,
  ...submit,
};
