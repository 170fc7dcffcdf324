"""The coordinator's application over a real store and fleet, on a clock of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient

from coordinator.api.app import Services, create_app
from coordinator.api.live import live_topics
from coordinator.api.management import Management
from coordinator.api.roles import ROLES_OF_PEOPLE
from coordinator.audit.chain import Record
from coordinator.exposition import Exposition
from coordinator.feed import Feed, live_states
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.live_serving import LiveServing
from coordinator.inference.serving_metrics import ServingMetrics
from coordinator.inference.text_services import TextServices
from coordinator.live import LiveHub
from coordinator.people.oidc import Provider
from coordinator.people.passwords import Passwords
from coordinator.people.people import People
from coordinator.store.store import Store
from coordinator.usage import Meters, UsageBook
from shared.crypto.identity import Identity, format_public
from shared.transport.memory import MemoryNetwork
from shared.wire.envelope import Post
from tests.support.clocks import VirtualClock
from tests.support.coordination import PROBE, job_tables, make_base
from tests.support.scripted_engines import ScriptedEngine

TOKEN = "s3cret-of-the-admin"  # noqa: S105  a test's own
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
SCRAPER = "s3cret-of-prometheus"


class NothingWritten:
    """An audit log without records."""

    def __len__(self) -> int:
        return 0

    def page(self, *, after: int, limit: int) -> list[Record]:
        """There are none."""
        del after, limit
        return []


class Api:
    """An application over a real store and fleet, on a clock of its own."""

    def __init__(
        self,
        folder: Path,
        texts: TextServices | None = None,
        *,
        provider: Provider | None = None,
        most_listeners: int = 64,
        room: int = 1000,
    ) -> None:
        self.clock = VirtualClock(start_s=1000.0)
        self.store = Store(f"sqlite:///{folder / 'store.db'}", folder)
        self.base = make_base(folder / "base")
        self.identity = Identity.create(folder / "identity.key")
        self.device_key = Identity.create(folder / "device.key")
        network = MemoryNetwork(self.clock.schedule, np.random.default_rng(1), now=self.clock.now)
        self.fleet = TransportFleet(
            network.attach("coordinator"),
            Post(self.identity, folder),
            key_holder=None,
            devices=self.store.devices,
            now=self.clock.now,
        )
        self.stopped: list[tuple[str, str]] = []
        self.ready = False
        exposition = Exposition()
        metrics = ServingMetrics(exposition)
        self.usage = UsageBook(folder, now=self.clock.now, write_s=3600.0)
        self.engine = ScriptedEngine(slots=2)
        serving = LiveServing()
        self.desk = FrontDesk(
            {self.engine.card.name: self.engine}, meter=Meters(metrics, self.usage, serving)
        )
        metrics.watch(self.desk)
        self.feed = Feed(
            self.store,
            lambda: live_states(self.fleet, self.desk, texts or TextServices(), self.store.alarms),
            most=most_listeners,
            room=room,
            look_s=0.05,
        )
        self.people = People(
            self.store.people,
            roles=ROLES_OF_PEOPLE,
            passwords=Passwords(memory_kib=8, rounds=1),
            now=self.clock.now,
            monotonic=self.clock.now,
        )
        self.live = LiveHub(
            live_topics(self.store, self.fleet, self.desk, serving).read, look_s=0.05
        )
        self.services = Services(
            store=self.store,
            fleet=self.fleet,
            coordinator=self.identity.public,
            key_holder=None,
            broker=("127.0.0.1", 1883),
            admin_token=TOKEN,
            now=self.clock.now,
            stop_run=lambda run, why: self.stopped.append((run, why)),
            is_ready=lambda: self.ready,
            desk=self.desk,
            adapter_of=lambda _: b"",
            people=self.people,
            provider=provider,
            metrics=exposition,
            metrics_token=SCRAPER,
            read_audit=NothingWritten(),
            texts=texts or TextServices(),
            management=Management(self.feed, self.usage, folder / "models", self.live),
        )
        self.app: FastAPI = create_app(self.services)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=HEADERS)

    def items(self, path: str) -> list[Any]:
        """The first page of a listing, which is all of it."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.json()["next"] is None
        return list(answer.json()["items"])

    def post(self, path: str, body: object) -> Any:
        return self.client.post(path, json=body, headers=HEADERS)

    def submit(self, **tables: dict[str, Any]) -> Any:
        body = {
            "job": job_tables(self.base, **tables),
            "probe": [[e.text, e.label, e.group] for e in PROBE],
            "seed": 3,
        }
        return self.post("/api/v1/runs", body)

    def make_key(self, name: str, **options: Any) -> dict[str, Any]:
        answer = self.post("/api/v1/keys", {"name": name} | options)
        assert answer.status_code == 201
        made: dict[str, Any] = answer.json()
        return made

    def revoke_key(self, name: str) -> Any:
        return self.client.delete(f"/api/v1/keys/{name}", headers=HEADERS)

    def quarantine_key(self, name: str) -> Any:
        return self.post(f"/api/v1/keys/{name}/quarantine", {})

    def ask(self, key: str, tokens: int = 2) -> Any:
        body = {
            "model": self.engine.card.name,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": tokens,
        }
        headers = {"Authorization": f"Bearer {key}"}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def join(self, **changes: Any) -> Any:
        """Join as a device does: with its token alone."""
        body = {
            "token": self.store.new_token(expires_at=self.clock.now() + 10),
            "name": "kitchen",
            "public_key": format_public(self.device_key.public),
        }
        return self.client.post("/api/v1/devices/join", json=body | changes)


def problem(answer: Any) -> dict[str, Any]:
    """The problem document of a refusal, checked against RFC 9457."""
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"].startswith("urn:llmos:")
    assert all(isinstance(body[member], str) for member in ("type", "title", "detail"))
    return body
