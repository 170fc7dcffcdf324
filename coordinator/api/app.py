"""The coordinator over HTTP: the application, with runs, devices and health.

Handlers translate: HTTP in, one call into the coordinator's own modules, HTTP
out. They are plain functions, which the framework runs on worker threads, so
that a slow disk never blocks the event loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Response, status
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from coordinator.api import problems
from coordinator.api.access import Access
from coordinator.api.audit import ReadAudit, audit_routes
from coordinator.api.chat import chat_routes
from coordinator.api.collections import collection_routes
from coordinator.api.console import console_routes
from coordinator.api.embeddings import embedding_routes
from coordinator.api.enrolment import enrolment_routes
from coordinator.api.gate import Gate
from coordinator.api.keys import key_routes
from coordinator.api.listings import listing_routes
from coordinator.api.management import Management, management_routes
from coordinator.api.oidc import oidc_routes
from coordinator.api.openapi_document import openapi_document
from coordinator.api.people import people_routes
from coordinator.api.request_ids import RequestIds
from coordinator.api.roles import unlisted
from coordinator.api.safe_headers import SafeHeaders
from coordinator.api.session import session_routes
from coordinator.api.tasks import task_routes
from coordinator.api.traced import Traced
from coordinator.audit.chain import Action, Entry
from coordinator.audit.sink import AuditSink, NoAudit, acting
from coordinator.authority.enrolment import Enrolment
from coordinator.exposition import CONTENT_TYPE, Exposition
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.inference.front_desk import FrontDesk
from coordinator.inference.text_services import TextServices
from coordinator.people.oidc import Provider
from coordinator.people.people import People
from coordinator.privacy_card import read_card
from coordinator.store.store import Store
from coordinator.submission import MAX_PROBE_EXAMPLES, submit
from coordinator.tracing import Tracing
from coordinator.views import view_run
from coordinator.watch.sightings import NoSightings, Sightings
from shared.config import read, read_json
from shared.crypto.identity import fingerprint
from shared.data_files import Example
from shared.errors import ConfigError
from shared.job import Job, RunPlan
from shared.types import PublicKey, RunId


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes may call.

    Attributes:
        store: The coordinator's memory.
        fleet: Who is present.
        coordinator: The coordinator's public key, handed to joining devices.
        key_holder: The key holder's, whose fingerprint devices compare with
            the one they got from its owner.
        broker: Host and port that devices connect to.
        admin_token: Opens everything.
        now: The clock.
        stop_run: Asks the coordinator's own thread to end a run.
        is_ready: Whether the broker is connected.
        desk: The way to the coordinator's language models; it may have none.
        adapter_of: The adapter that a run has learnt for such a model, as bytes. Raises
            :class:`~shared.errors.RunNotFound` or another :class:`~shared.errors.RoundError`.
        people: Who can log in; ``None`` has no such routes.
        provider: Of identities, where people can log in; ``None``: there is none.
        metrics: For Prometheus; ``None`` shows none.
        metrics_token: Opens ``/metrics`` and nothing else; empty opens nothing.
        management: What the routes for consoles need besides; ``None`` has no such routes.
        texts: Encoder, reader and collections, those that there are.
        audit: Where it is written down what is asked for and changes no row by itself; the store
            sees to the rest.
        read_audit: The audit log; ``None``: there is none.
        tracing: Where spans of requests go; ``None``: nowhere.
        watch: Told which credentials are refused, and from where keys are used.
        enrolment: Issues certificates; ``None``: servers and broker speak without TLS.
    """

    store: Store
    fleet: TransportFleet
    coordinator: PublicKey
    key_holder: PublicKey | None
    broker: tuple[str, int]
    admin_token: str
    now: Callable[[], float]
    stop_run: Callable[[RunId, str], None]
    is_ready: Callable[[], bool]
    desk: FrontDesk
    adapter_of: Callable[[RunId], bytes]
    people: People | None = None
    provider: Provider | None = None
    metrics: Exposition | None = None
    metrics_token: str = ""
    management: Management | None = None
    texts: TextServices = dataclasses.field(default_factory=TextServices)
    audit: AuditSink = dataclasses.field(default_factory=NoAudit)
    read_audit: ReadAudit | None = None
    tracing: Tracing | None = None
    watch: Sightings = dataclasses.field(default_factory=NoSightings)
    enrolment: Enrolment | None = None


class NewRun(BaseModel):
    """A job with the public examples that judge it."""

    model_config = ConfigDict(extra="forbid")

    job: dict[str, Any] = Field(description="The tables of job.toml")
    probe: list[tuple[str, str, str]] = Field(
        max_length=MAX_PROBE_EXAMPLES, description="Text, label and group of every example"
    )
    seed: int = Field(ge=0, lt=2**63)
    simulation: bool = False


class Stop(BaseModel):
    """Why a run is to end."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="stopped by an operator", max_length=500)


class NewToken(BaseModel):
    """How long a join token stays valid."""

    model_config = ConfigDict(extra="forbid")

    valid_s: float = Field(default=900.0, gt=0, le=7 * 24 * 3600)


def create_app(services: Services) -> FastAPI:
    """The application. Who may use which route is in :mod:`coordinator.api.roles`."""
    # Without redirects a path with a slash too many is one that there is not, as for the gate.
    app = FastAPI(title="LLM OS coordinator", version="1", openapi_url=None, redirect_slashes=False)
    problems.install(app)
    access = Access(
        services.store,
        admin_token=services.admin_token,
        metrics_token=services.metrics_token,
        sessions=services.people,
        now=services.now,
    )
    app.add_middleware(Gate, identify=access.identify, watch=services.watch)
    if services.tracing is not None:
        app.add_middleware(Traced, tracing=services.tracing)
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestIds)
    app.include_router(_health(services))
    for router in (
        enrolment_routes(services),
        _devices(services),
        _runs(services),
        key_routes(access),
    ):
        app.include_router(router, prefix="/api/v1")
    if services.people is not None:
        people, provider = services.people, services.provider
        for router in (
            session_routes(people, access, oidc=provider is not None),
            oidc_routes(people, provider),
            people_routes(people),
        ):
            app.include_router(router, prefix="/api/v1")
    if services.read_audit is not None:
        app.include_router(audit_routes(services.read_audit), prefix="/api/v1")
    app.include_router(listing_routes(services), prefix="/api/v1")
    app.include_router(chat_routes(services), prefix="/v1")
    for routes in (embedding_routes, task_routes, collection_routes):
        app.include_router(routes(services.texts), prefix="/v1")
    if services.management is not None:
        app.include_router(
            management_routes(services, services.management, access), prefix="/api/v1"
        )
    app.include_router(console_routes())
    if services.metrics is not None:
        app.include_router(_metrics(services.metrics))

    @app.get("/api/v1/openapi.json", include_in_schema=False)
    def show_document() -> dict[str, Any]:
        """What this page of the API looks like to a machine."""
        return document

    if missing := unlisted(app):
        raise RuntimeError(f"routes without a line in the table of roles: {sorted(missing)}")
    document = openapi_document(app)
    return app


def _health(services: Services) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> dict[str, bool]:
        """Whether devices can be reached."""
        return {"ready": services.is_ready()}

    return router


def _metrics(metrics: Exposition) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=PlainTextResponse)
    def read_metrics() -> Response:
        """What serving and federated rounds do, in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _devices(services: Services) -> APIRouter:
    router = APIRouter(tags=["devices"])

    @router.post("/devices/tokens", status_code=status.HTTP_201_CREATED)
    def new_token(body: NewToken) -> dict[str, Any]:
        """A one-time token with the coordinator's fingerprint inside, so that a device can pin it."""
        expires_at = services.now() + body.valid_s
        secret = services.store.new_token(expires_at=expires_at)
        return {"token": f"{secret}.{fingerprint(services.coordinator)}", "expires_at": expires_at}

    return router


def _runs(services: Services) -> APIRouter:
    router = APIRouter(tags=["runs"])
    store = services.store

    @router.get("/runs/{run}")
    def show_run(run: str) -> dict[str, Any]:
        """One run with its rounds."""
        return dataclasses.asdict(view_run(store, store.run(RunId(run))))

    @router.get("/runs/{run}/privacy", summary="Who could see what of a run")
    def show_privacy(run: str) -> dict[str, Any]:
        """What each party sees of it, what it cost so far, and what was checked."""
        row = store.run(RunId(run))
        return read_card(store, row.run, read_json(RunPlan, row.plan, source=f"plan of {run}"))

    @router.post("/runs", status_code=status.HTTP_201_CREATED)
    def submit_run(body: NewRun) -> dict[str, Any]:
        """Submit a job. Refused whole, with every problem named."""
        job = read(Job, body.job, source="job")
        if job.protection.scheme != "clear" and services.key_holder is None:
            problem = "this coordinator has no key holder to open sums: start it with --key-holder"
            raise ConfigError([f"protection.scheme: {problem}"], source="job")
        plan = submit(
            store,
            job,
            [Example(*row) for row in body.probe],
            seed=body.seed,
            simulation=body.simulation,
            now=services.now(),
        )
        return dataclasses.asdict(view_run(store, store.run(plan.run_id)))

    @router.post("/runs/{run}/stop", status_code=status.HTTP_202_ACCEPTED)
    def stop_run(run: str, body: Stop) -> dict[str, str]:
        """End a run; what it has learnt so far stays."""
        name = store.run(RunId(run)).run
        services.audit.record(Entry(Action.RUN_STOP_ASKED, acting.get(), name))
        services.stop_run(name, body.reason)
        return {"run": run}

    return router
