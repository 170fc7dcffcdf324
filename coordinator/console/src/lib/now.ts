/** The present, for passed times on a page: it moves every ten seconds. */

import { useEffect, useState } from "react";

const STEP_MS = 10_000;

/** Seconds since the epoch. */
export function useNow(): number {
  const [now, setNow] = useState(() => Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), STEP_MS);
    return () => clearInterval(timer);
  }, []);
  return now;
}
