"""The coordinator's composition root: one place that builds its world and takes it down."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from coordinator.api.app import Services, create_app
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.coordinator import Coordinator
from coordinator.inference.engine import Engine
from coordinator.inference.replicated_engine import ReplicatedEngine
from coordinator.inference.run_adapters import adapters_by_name, run_adapters
from coordinator.inference.transformers_engine import TransformersEngine
from coordinator.inference.upstream_engine import UpstreamEngine
from coordinator.inference.upstream_wire import AdapterNames, parse_nodes
from coordinator.registry.release_worker import release_maker
from coordinator.store.store import Store
from shared.actors import ActorLoop
from shared.config import parse_address
from shared.crypto.identity import Identity, fingerprint, format_public, parse_public
from shared.crypto.sum_worker import SumWorker
from shared.errors import ConfigError, LlmOsError
from shared.loopback import LOOPBACK, served
from shared.models.model_worker import ModelWorker
from shared.service import announced_ready, home_lock, secret_token, serve
from shared.transport.mqtt import MqttTransport
from shared.wire.envelope import Post

MAX_REPLICAS: Final = 64

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Serving:
    """Which language model a coordinator answers with.

    Attributes:
        model: A folder or hub id; empty for none here.
        replicas: Processes that hold it, each with its share of the cores.
        upstream: Addresses of those who serve it, separated by commas, in place of ``model``.
        upstream_model: As they call it, and we too.
        upstream_keys: One key for all of them, or one for each, separated by commas.
        adapter_names: How they call a run's adapter.
    """

    model: str = ""
    replicas: int = 1
    upstream: str = ""
    upstream_model: str = ""
    upstream_keys: str = field(default="", repr=False)
    adapter_names: AdapterNames = "llmos"

    def engine(self) -> Engine | None:
        """The engine, not started; ``None`` for none.

        Raises:
            ConfigError: the options contradict each other.
            ModelError: ``model`` is neither a folder with a model nor written like a hub id.
        """
        problems = []
        if self.model and self.upstream:
            problems.append("--model and --upstream: one of them answers, name that")
        if bool(self.upstream) != bool(self.upstream_model):
            problems.append("--upstream and --upstream-model: name both")
        if self.upstream_keys and not self.upstream:
            problems.append("--upstream-key-env: of no --upstream")
        if not 1 <= self.replicas <= MAX_REPLICAS:
            problems.append(f"--replicas: 1 to {MAX_REPLICAS}, not {self.replicas}")
        elif self.replicas > 1 and not self.model:
            problems.append("--replicas: of no --model")
        if problems:
            raise ConfigError(problems, source="options")
        if self.upstream:
            nodes = parse_nodes(self.upstream, self.upstream_keys)
            return UpstreamEngine(nodes, self.upstream_model, adapter_names=self.adapter_names)
        if not self.model:
            return None
        threads = max(1, (os.cpu_count() or 1) // self.replicas)
        engines = [_engine(self.model, threads=threads) for _ in range(self.replicas)]
        return engines[0] if len(engines) == 1 else ReplicatedEngine(engines)


def _engine(model: str, *, threads: int) -> Engine:
    return TransformersEngine(model, threads=threads)


def run_coordinator(
    home: Path,
    *,
    port: int,
    broker_port: int,
    broker: str,
    key_holder: str,
    serving: Serving | None = None,
) -> None:
    """Run a coordinator until SIGINT or SIGTERM. Call on the main thread.

    Args:
        home: Store, blobs, identity and admin token; one process at a time.
        port: Of the HTTP API on loopback; 0 finds a free one.
        broker_port: Of the broker that is started; 0 finds a free one.
        broker: ``HOST:PORT`` of a broker that runs already; empty starts one.
        key_holder: The key holder's public key; empty for clear runs only.
        serving: Which language model to serve; ``None`` for none. It is loaded after the
            coordinator is ready.

    Raises:
        ConfigError: a port is taken, an address or key is malformed, or options of ``serving``
            contradict each other.
        ModelError: its ``model`` is neither a folder with a model nor written like a hub id.
        BrokerUnavailable: there is no broker and none can be started.
        StorageError: the home cannot be used.
    """
    holder = parse_public(key_holder) if key_holder else None
    serving = serving or Serving()
    engine = serving.engine()
    with ExitStack() as stack:
        stack.enter_context(home_lock(home))
        identity = Identity.load_or_create(home / "identity.key")
        store = Store(f"sqlite:///{home / 'store.db'}", home)
        stack.callback(store.close)
        if broker:
            kind, (broker_host, broker_port) = "external", parse_address(broker)
        else:
            embedded = stack.enter_context(_kept_alive(home / "broker", broker_port))
            kind, broker_host, broker_port = embedded.kind, embedded.host, embedded.port
        transport = MqttTransport(
            broker_host, broker_port, f"coordinator-{fingerprint(identity.public)}"
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
            engine=engine,
        )
        app = create_app(
            Services(
                store=store,
                fleet=coordinator.fleet,
                coordinator=identity.public,
                key_holder=holder,
                broker=(broker_host, broker_port),
                admin_token=secret_token(home / "admin.token"),
                now=time.time,
                stop_run=lambda run, why: loop.post(lambda: coordinator.stop_run(run, why)),
                is_ready=lambda: transport.connected,
                engine=engine,
                adapter_of=adapters_by_name if serving.upstream else run_adapters(store),
            )
        )
        listening = stack.enter_context(served(app, port, extra="coordinator"))
        url = f"http://{LOOPBACK}:{listening}"
        facts = {
            "url": url,
            "broker": kind,
            "broker_host": broker_host,
            "broker_port": broker_port,
            "public_key": format_public(identity.public),
        }
        stack.enter_context(announced_ready(home, facts))
        log.info("coordinator.ready", **facts)
        if engine is not None:
            # Closed before the server is, so that nobody waits for an answer that takes minutes.
            stack.callback(engine.close)
            engine.start()
        serve(coordinator, transport, loop)


@contextmanager
def _kept_alive(folder: Path, port: int) -> Iterator[EmbeddedBroker]:
    """A broker that is started again whenever it has ended."""
    over = threading.Event()
    with EmbeddedBroker(folder, port=port) as broker:
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
            yield broker
        finally:
            over.set()
            watcher.join()
