/** Who uses this page. The session itself is in a cookie that no script can read. */

import { createContext, type ReactNode, useContext, useEffect } from "react";
import { api, refusals } from "../api/api";
import { live } from "../api/live";
import { type Resource, useResource } from "../api/use_resource";
import { useCell } from "./cell";

export type Role = "viewer" | "auditor" | "operator" | "admin" | "caller" | "device";

/** Who may look at devices, runs and models, and follow them live. */
export const READING = ["viewer", "operator", "admin"] as const;
/** Who may look at what was done, and by whom. */
export const AUDITING = ["auditor", "admin"] as const;

export interface Session {
  name: string | null;
  role: Role | null;
  kind: "person" | "key" | "token" | null;
  /** Nobody has an account yet. */
  first: boolean;
  /** Whether an identity provider can be used. */
  oidc: boolean;
}

const Context = createContext<Resource<Session> | null>(null);

export function SessionProvider({ children }: { children: ReactNode }) {
  const session = useResource<Session>("/api/v1/session");
  const refused = useCell(refusals);
  const { reload } = session;
  useEffect(() => {
    if (refused > 0) reload();
  }, [refused, reload]);
  const name = session.data?.name ?? null;
  useEffect(() => {
    // Another person's page must not show what the last one saw.
    if (name === null) live.stop();
  }, [name]);
  return <Context.Provider value={session}>{children}</Context.Provider>;
}

export function useSession(): Resource<Session> {
  const session = useContext(Context);
  if (!session) throw new Error("there is no SessionProvider above");
  return session;
}

/** Whether who uses this page has one of these roles. The server decides; this hides buttons. */
export function useMay(...roles: Role[]): boolean {
  const role = useSession().data?.role;
  return role != null && roles.includes(role);
}

export async function logOut(session: Resource<Session>): Promise<void> {
  await api.delete("/api/v1/session");
  live.stop();
  session.reload();
}
