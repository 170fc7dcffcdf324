"""The coordinator's composition root: one place that builds its world and takes it down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from coordinator.api.alarms import alarm_view
from coordinator.api.app import Services, create_app
from coordinator.api.live import WEB_SOCKETS, live_topics
from coordinator.api.management import Management
from coordinator.api.roles import ROLES_OF_PEOPLE
from coordinator.audit.audited_store import AuditedStore, Written, catch_up
from coordinator.audit.chain import Action, Entry, Fact
from coordinator.audit.log import AuditLog
from coordinator.audit.sink import COORDINATOR
from coordinator.authority.authority import Authority
from coordinator.authority.enrolment import Enrolment
from coordinator.authority.keeper import Keeper
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.coordinator import Coordinator
from coordinator.exposition import Exposition
from coordinator.federation_metrics import FederationMetrics
from coordinator.feed import Feed, live_states
from coordinator.fleet.standings import quarantine_trusted
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.inference.answer_cache import AnswerCache, MemoryStore
from coordinator.inference.engine import Engine
from coordinator.inference.engines import Serving
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.live_serving import LiveServing
from coordinator.inference.redis_store import RedisStore
from coordinator.inference.run_adapters import adapters_by_name, run_adapters
from coordinator.inference.run_heads import run_heads
from coordinator.inference.serve_texts import NO_ENCODER, serve_texts
from coordinator.inference.serving_metrics import ServingMetrics
from coordinator.listening import Listening
from coordinator.live import LiveHub
from coordinator.people.oidc import OidcSettings, Provider, check_settings
from coordinator.people.people import People
from coordinator.registry.release_worker import release_maker
from coordinator.security.daily import DailyCheck, LookInChild, raise_finding
from coordinator.security.facts import Connection
from coordinator.security.findings import Finding
from coordinator.store.database import store_url
from coordinator.store.store import Store
from coordinator.tracing import EngineSpans, RoundSpans, Tracing
from coordinator.usage import Meters, UsageBook
from coordinator.watch.metrics import show_alarms
from coordinator.watch.rules import About, Severity
from coordinator.watch.settings import Watching, read_watching
from coordinator.watch.watch import Watch
from coordinator.watch.webhook import Webhook, webhook_secret
from shared.actors import ActorLoop
from shared.config import parse_address
from shared.crypto.identity import Identity, fingerprint, format_public, parse_public
from shared.crypto.sum_worker import SumWorker
from shared.errors import LlmOsError
from shared.loopback import served
from shared.models.model_worker import ModelWorker
from shared.service import announced_ready, home_lock, secret_token, serve
from shared.transport.mqtt import MqttTransport
from shared.types import DeviceId, PublicKey
from shared.wire.envelope import Post

log = structlog.get_logger()


def run_coordinator(
    home: Path,
    *,
    port: int,
    broker_port: int,
    broker: str,
    key_holder: str,
    serving: Serving | None = None,
    cache: str = "memory",
    encoder: str = NO_ENCODER,
    reader: str = "",
    vectors: str = "",
    store_at: str = "",
    oidc: OidcSettings | None = None,
    say: Callable[[str], None] = lambda _: None,
    otel_endpoint: str = "",
    watch_file: Path | None = None,
    listening: Listening | None = None,
) -> None:
    """Run a coordinator until SIGINT or SIGTERM. Call on the main thread.

    Args:
        home: Store, blobs, identity and admin token; one process at a time.
        port: Of the HTTP API; 0 finds a free one.
        broker_port: Of the broker that is started; 0 finds a free one.
        broker: ``HOST:PORT`` of a broker that runs already; empty starts one.
        key_holder: The key holder's public key; empty for clear runs only.
        serving: Which language model to serve; ``None`` for none. It is loaded after the
            coordinator is ready.
        cache: Where exact answers are kept: ``memory``, a Redis URL, or ``none``. With a Redis,
            beginnings of prompts are shared there too.
        encoder: Folder or hub id of the model that embeds and classifies texts; empty for MiniLM
            if it is on this machine, imported when it is first needed; ``none`` for none.
        reader: Folder or hub id of the model that finds answers in passages; empty for none.
        vectors: URL of a PostgreSQL with pgvector that keeps collections of passages; empty
            keeps them in the home.
        store_at: URL of a PostgreSQL that keeps the rows; empty keeps them in the home. Blobs are
            files in the home anyway.
        oidc: A provider of identities, where people can log in; ``None``: none.
        say: Told what is for whoever started it, and for no log: where to make the first account.
        otel_endpoint: Of an OTLP/HTTP receiver for spans; empty measures none.
        watch_file: Settings of :mod:`coordinator.watch.settings`; ``None``: ``watch.toml`` in the
            home, if there is one.
        listening: On which address, and whether over TLS; ``None``: on loopback, in clear.

    Raises:
        ConfigError: a port is taken, an address or key is malformed, or options of ``serving``
            contradict each other.
        ModelError: a model is neither a folder with one nor written like a hub id.
        BrokerUnavailable: there is no broker and none can be started.
        StorageError: the home or the store cannot be used, or the audit log is damaged.
    """
    holder = parse_public(key_holder) if key_holder else None
    rows_at = store_url(store_at, home)
    watching = read_watching(home, watch_file)
    provider = _provider(oidc)
    serving, listening = serving or Serving(), listening or Listening()
    engine = serving.engine(home / "models", prefixes="" if cache in _NOT_SHARED else cache)
    with ExitStack() as stack:
        tracing = stack.enter_context(_spans(otel_endpoint))
        stack.enter_context(home_lock(home))
        identity = Identity.load_or_create(home / "identity.key")
        audit, store = stack.enter_context(_audited_store(rows_at, home, identity, holder))
        watch = stack.enter_context(_watched(watching, home, store, audit))
        counted = stack.enter_context(
            _front_desk(engine, home, cache=cache, watch=watch, tracing=tracing)
        )
        desk, exposition = counted.desk, counted.exposition
        show_alarms(exposition, watch, store.alarms)
        keeper = _keeper(listening, home, store, identity) if listening.tls else None
        reached = stack.enter_context(_reached(broker, home, broker_port, listening, keeper))
        transport = MqttTransport(
            *reached.here,
            f"coordinator-{fingerprint(identity.public)}",
            credentials=keeper.credentials if keeper is not None else None,
        )
        loop, adder = ActorLoop(), SumWorker()
        stack.callback(adder.close)
        coordinator = Coordinator(
            store=store,
            transport=transport,
            post=Post(identity, home),
            key_holder=holder,
            bench=loop,
            adder=adder,
            make_model=ModelWorker,
            make_release=release_maker(home / "models"),
            desk=desk,
            watch=watch,
        )
        _let_quarantine(watch, watching, store, coordinator.fleet)
        FederationMetrics(
            exposition,
            store=store,
            fleet=coordinator.fleet,
            is_connected=lambda: transport.connected,
        )
        if tracing is not None:
            RoundSpans(tracing, store)
        texts = serve_texts(
            home,
            encoder=encoder,
            reader=reader,
            vectors=vectors,
            find_head=run_heads(store),
            on_nodes=serving.encoders(),
        )
        people = People(store.people, roles=ROLES_OF_PEOPLE, audit=audit)
        stack.callback(people.close)
        feed = Feed(
            store, lambda: live_states(coordinator.fleet, desk, texts.services, store.alarms)
        )
        live = LiveHub(live_topics(store, coordinator.fleet, desk, counted.serving).read)
        app = create_app(
            Services(
                store=store,
                fleet=coordinator.fleet,
                coordinator=identity.public,
                key_holder=holder,
                broker=reached.told,
                admin_token=secret_token(home / "admin.token"),
                now=time.time,
                stop_run=lambda run, why: loop.post(lambda: coordinator.stop_run(run, why)),
                is_ready=lambda: transport.connected,
                desk=desk,
                adapter_of=adapters_by_name if serving.upstream_model else run_adapters(store),
                people=people,
                provider=provider,
                metrics=exposition,
                metrics_token=secret_token(home / "metrics.token"),
                texts=texts.services,
                audit=audit,
                read_audit=audit,
                management=Management(feed, counted.usage, home / "models", live),
                tracing=tracing,
                watch=watch,
                enrolment=_enrolment(keeper, listening, holder) if keeper is not None else None,
            )
        )
        listens_at = stack.enter_context(
            served(
                app,
                port,
                extra="coordinator",
                host=listening.host,
                tls=keeper.context if keeper is not None else None,
                **WEB_SOCKETS,
            )
        )
        url = listening.url(listens_at)
        facts = {
            "url": url,
            "tls": listening.tls,
            "broker": reached.kind,
            "broker_host": reached.told[0],
            "broker_port": reached.told[1],
            "public_key": format_public(identity.public),
        }
        urls = {"store": store_at, "vectors": vectors, "cache": cache, "traces": otel_endpoint}
        connections = _connections(
            broker=reached.here[0], tls=listening.tls, serving=serving, urls=urls
        )
        stack.enter_context(announced_ready(home, facts | {"connections": connections}))
        log.info("coordinator.ready", **facts)
        if not people.has_accounts():
            say(f"make the first account: {login_address(url, people.first_link().secret)}")
        # Ended before the server is, which waits for answers that are under way.
        stack.callback(feed.close)
        stack.callback(live.close)
        stack.callback(texts.close)
        stack.enter_context(_checked_daily(home, store_at, audit, watch))
        texts.start()
        if engine is not None:
            # Closed before the server is, so that nobody waits for an answer that takes minutes.
            stack.callback(engine.close)
            engine.start()
        serve(coordinator, transport, loop)


def login_address(url: str, link: str) -> str:
    """Where a link is opened: behind the ``#``, which no browser sends to anybody."""
    return f"{url}/console/#/login/{link}"


_NOT_SHARED: Final = ("memory", "none")


@dataclass(frozen=True, slots=True)
class _Counted:
    """The way to language models, and who counts what passes there."""

    desk: FrontDesk
    exposition: Exposition
    usage: UsageBook
    serving: LiveServing


@contextmanager
def _front_desk(
    engine: Engine | None, home: Path, *, cache: str, watch: Watch, tracing: Tracing | None
) -> Iterator[_Counted]:
    answers, exposition, serving = _answer_cache(cache), Exposition(), LiveServing()
    metrics, usage = ServingMetrics(exposition), UsageBook(home, now=time.time)
    spans = [EngineSpans(tracing)] if tracing is not None else []
    engines = {engine.card.name: engine} if engine is not None else {}
    meter = Meters(metrics, usage, serving, watch, *spans)
    desk = FrontDesk(engines, cache=answers, meter=meter)
    metrics.watch(desk)
    with ExitStack() as stack:
        if answers is not None:
            stack.callback(answers.close)
        stack.callback(usage.close)
        yield _Counted(desk, exposition, usage, serving)


def _connections(
    *, broker: str, tls: bool, serving: Serving, urls: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What is used over sockets, for whoever checks it, without who may enter."""
    found = [Connection("broker", broker, tls=tls, secret=tls)]
    found += [
        Connection.of_url(what, url) for what, url in urls.items() if url and url not in _NOT_SHARED
    ]
    nodes = [url.strip() for url in serving.upstream.split(",") if url.strip()]
    secret = bool(serving.upstream_keys)
    found += [Connection.of_url("node", url, secret=secret) for url in nodes]
    return [asdict(each) for each in found]


@contextmanager
def _spans(endpoint: str) -> Iterator[Tracing | None]:
    """Where spans go; ``None``: nowhere."""
    if not endpoint:
        yield None
        return
    with closing(Tracing(endpoint)) as tracing:
        yield tracing


@contextmanager
def _checked_daily(home: Path, store_at: str, audit: AuditLog, watch: Watch) -> Iterator[None]:
    """The security check, on a thread of its own for as long as this runs."""
    look = LookInChild(home, store_at=store_at)

    def raise_one(found: Finding) -> None:
        raise_finding(found, audit)
        severity = (
            Severity.CRITICAL if str(found.severity) == Severity.CRITICAL else Severity.WARNING
        )
        watch.found(found.code, severity, f"{found.subject}: {found.detail}; {found.advice}")

    check = DailyCheck(
        home,
        look=look,
        raise_one=raise_one,
        stop_looking=look.close,
    )
    with closing(check):
        check.start()
        yield


@contextmanager
def _watched(settings: Watching, home: Path, store: Store, audit: AuditLog) -> Iterator[Watch]:
    """Whoever watches, and sends alarms where they are to be sent."""
    with ExitStack() as stack:
        webhook = None
        if settings.webhook:
            secret = webhook_secret(home)
            webhook = Webhook(
                store.alarms,
                url=settings.webhook,
                secret=secret,
                view=lambda alarm: alarm_view(alarm).model_dump(),
            )
            stack.callback(webhook.close)
            webhook.start()
        watch = Watch(
            store.alarms,
            home=home,
            audit=audit,
            rules=settings.effective(),
            is_device=lambda name: store.device(name) is not None,
            told=lambda _: webhook.wake() if webhook is not None else None,
            deliver=webhook is not None,
        )
        stack.callback(watch.close)
        store.follow(watch.committed)
        watch.start()
        yield watch


def _let_quarantine(watch: Watch, settings: Watching, store: Store, fleet: TransportFleet) -> None:
    """Let rules put devices and keys into quarantine, where the operator wants that."""

    def put_device(name: str, reason: str) -> bool:
        return quarantine_trusted(store, fleet, DeviceId(name), reason, now=time.time())

    def put_key(name: str, reason: str) -> bool:
        now = time.time()
        opens = any(key.name == name and key.opens(now) for key in store.api_keys())
        return opens and store.quarantine_key(name, reason, now=now)

    if settings.quarantine_devices:
        watch.let_quarantine(About.DEVICE, put_device)
    if settings.quarantine_keys:
        watch.let_quarantine(About.KEY, put_key)


def _answer_cache(where: str) -> AnswerCache | None:
    if where == "none":
        return None
    return AnswerCache(MemoryStore() if where == "memory" else RedisStore(where))


@contextmanager
def _audited_store(
    url: str, home: Path, identity: Identity, key_holder: PublicKey | None
) -> Iterator[tuple[AuditLog, AuditedStore]]:
    """The audit log and the store, which agree; beginning and end are written down."""
    written = Written()
    with AuditLog(home / "audit", identity, told=written.take) as audit:
        store = AuditedStore(url, home, audit=audit)
        with closing(store), store.database.claimed():
            facts: dict[str, Fact] = {"caught_up": catch_up(store, written, audit)}
            del written  # it grows with the log
            if key_holder is not None:
                facts["key_holder"] = fingerprint(key_holder)
            audit.record(Entry(Action.COORDINATOR_STARTED, COORDINATOR, "", facts))
            audit.checkpoint()  # a log without any could be cut to nothing
            try:
                yield audit, store
            finally:
                audit.record(Entry(Action.COORDINATOR_STOPPED, COORDINATOR))


def _provider(settings: OidcSettings | None) -> Provider | None:
    if settings is None:
        return None
    check_settings(settings, roles=ROLES_OF_PEOPLE)
    return Provider(settings)


@dataclass(frozen=True, slots=True)
class _Reached:
    """A broker: which, where it is from here, and what others are told."""

    kind: str
    here: tuple[str, int]
    told: tuple[str, int]


@contextmanager
def _reached(
    broker: str, home: Path, port: int, listening: Listening, keeper: Keeper | None
) -> Iterator[_Reached]:
    """The broker that was named, or one that is started; with TLS, what it reads is kept up to date."""
    with ExitStack() as stack:
        if broker:
            place = parse_address(broker)
            reached = _Reached("external", place, place)
        else:
            files = keeper.broker_files if keeper is not None else None
            embedded = EmbeddedBroker(home / "broker", host=listening.host, port=port, files=files)
            stack.enter_context(_kept_alive(embedded))
            here = embedded.reachable_at, embedded.port
            told = (listening.told, embedded.port) if keeper is not None else here
            reached = _Reached(embedded.kind, here, told)
            if keeper is not None:
                keeper.reload_broker = embedded.reload
        if keeper is not None:
            stack.callback(keeper.close)
            keeper.start()
        yield reached


def _keeper(listening: Listening, home: Path, store: Store, identity: Identity) -> Keeper:
    authority = Authority(home / "authority", now=time.time())
    return Keeper(
        authority,
        store,
        identity,
        home,
        names=listening.certified,
        now=time.time,
        given=listening.given,
    )


def _enrolment(keeper: Keeper, listening: Listening, holder: PublicKey | None) -> Enrolment:
    return Enrolment(
        authority=keeper.authority,
        store=keeper.store,
        identity=keeper.identity,
        key_holder=holder,
        trusted=keeper.trusted,
        now=time.time,
        life_s=listening.life_s,
    )


@contextmanager
def _kept_alive(broker: EmbeddedBroker) -> Iterator[None]:
    """Start it again whenever it has ended."""
    over = threading.Event()
    with broker:
        if broker.warning:
            log.warning("broker.fallback", advice=broker.warning)

        def watch() -> None:
            while not over.wait(0.5):
                if broker.alive:
                    continue
                log.warning("broker.restarting")
                try:
                    broker.restart()
                except (LlmOsError, OSError) as err:
                    log.error("broker.failing", error=str(err))

        watcher = threading.Thread(target=watch, daemon=True, name="broker-watch")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
