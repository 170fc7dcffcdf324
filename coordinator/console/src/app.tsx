import { Empty, Notice, ProblemNotice, Skeleton } from "./components/basic";
import { Boundary } from "./components/boundary";
import { Layout } from "./components/layout";
import { Toasts } from "./components/toast";
import { useText } from "./lib/i18n";
import { usePath } from "./lib/router";
import { SessionProvider, useSession } from "./lib/session";
import { PAGES } from "./pages";
import { Login } from "./pages/login";

export function App() {
  return (
    <SessionProvider>
      <Shown />
      <Toasts />
    </SessionProvider>
  );
}

function Shown() {
  const t = useText();
  const path = usePath();
  const session = useSession();
  const role = session.data?.role ?? null;
  if (session.problem && !session.data) {
    return (
      <div className="login">
        <ProblemNotice problem={session.problem} retry={session.reload} />
      </div>
    );
  }
  if (!session.data) return <Skeleton lines={6} />;
  // A link may be opened by who is logged in: an administrator who tries an invitation, say.
  if (role === null || (path[0] === "login" && path[1])) return <Login link={path[1] ?? null} />;

  const pages = PAGES.filter((page) => page.roles.includes(role));
  const wanted = path[0] === "login" || path[0] === undefined ? pages[0]?.path : path[0];
  const page = pages.find((each) => each.path === wanted);
  const place = path.join("/");
  return (
    <Layout pages={pages} current={wanted ?? ""} place={place}>
      <Boundary key={place} instead={<Notice tone="bad">{t("common.broken")}</Notice>}>
        {page ? (
          page.show(path.slice(1))
        ) : (
          <Empty icon="more" title={t("common.no-page")}>
            <p>{t("common.no-page.about")}</p>
          </Empty>
        )}
      </Boundary>
    </Layout>
  );
}
