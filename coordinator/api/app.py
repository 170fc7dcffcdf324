"""The coordinator over HTTP: runs, devices, health. Everything else is denied.

Handlers translate: HTTP in, one call into the coordinator's own modules, HTTP
out. They are plain functions, which the framework runs on worker threads, so
that a slow disk never blocks the event loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response, status
from pydantic import BaseModel, Field

from coordinator.api import problems
from coordinator.api.access import Access
from coordinator.api.bodies import BoundedBodies
from coordinator.api.chat import chat_routes
from coordinator.api.collections import collection_routes
from coordinator.api.embeddings import embedding_routes
from coordinator.api.keys import key_routes
from coordinator.api.request_ids import RequestIds
from coordinator.api.tasks import task_routes
from coordinator.exposition import CONTENT_TYPE, Exposition
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.inference.front_desk import Caller, FrontDesk
from coordinator.inference.text_services import TextServices
from coordinator.store.store import Store
from coordinator.submission import MAX_PROBE_EXAMPLES, submit
from coordinator.views import run_events, view_run
from shared.config import read
from shared.crypto.identity import fingerprint, format_public, parse_public
from shared.data_files import Example
from shared.errors import AccessDenied, ConfigError, DataError
from shared.job import Job
from shared.types import DeviceId, PublicKey, RunId
from shared.wire import topics


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
        metrics: For Prometheus; ``None`` shows none.
        metrics_token: Opens ``/metrics`` and nothing else; empty opens nothing.
        texts: Encoder, reader and collections, those that there are.
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
    metrics: Exposition | None = None
    metrics_token: str = ""
    texts: TextServices = dataclasses.field(default_factory=TextServices)


class NewRun(BaseModel):
    """A job with the public examples that judge it."""

    job: dict[str, Any] = Field(description="The tables of job.toml")
    probe: list[tuple[str, str, str]] = Field(
        max_length=MAX_PROBE_EXAMPLES, description="Text, label and group of every example"
    )
    seed: int = Field(ge=0, lt=2**63)
    simulation: bool = False


class Stop(BaseModel):
    """Why a run is to end."""

    reason: str = Field(default="stopped by an operator", max_length=500)


class NewToken(BaseModel):
    """How long a join token stays valid."""

    valid_s: float = Field(default=900.0, gt=0, le=7 * 24 * 3600)


class Join(BaseModel):
    """A device that joins, with the public half of a key it made itself."""

    token: str = Field(max_length=200)
    name: str = Field(max_length=64)
    public_key: str = Field(max_length=200)


def create_app(services: Services) -> FastAPI:
    """The application.

    Every route under ``/api`` but joining needs the admin token, those under ``/v1`` that or an
    API key, ``/metrics`` that or the token for metrics.
    """
    app = FastAPI(title="LLM OS coordinator", version="1", openapi_url=None)
    problems.install(app)

    access = Access(
        services.store,
        admin_token=services.admin_token,
        metrics_token=services.metrics_token,
        now=services.now,
    )
    app.add_middleware(
        BoundedBodies,
        is_admin=access.is_admin,
        is_caller=lambda shown: access.caller(shown) is not None,
    )
    app.add_middleware(RequestIds)

    def authorised(authorization: Annotated[str, Header()] = "") -> None:
        if not access.is_admin(authorization):
            raise AccessDenied("show the admin token as 'Authorization: Bearer …'")

    async def caller_of(request: Request) -> Caller:
        """On whose behalf a language model is asked."""
        caller = access.caller(request.headers.get("authorization", ""))
        if caller is None:
            raise AccessDenied(
                "show an API key as 'Authorization: Bearer …': 'llmos key add NAME' makes one"
            )
        return caller

    async def remembered(request: Request) -> None:
        """Let the routes about texts find their caller (:func:`coordinator.api.texts.caller_of`)."""
        request.state.caller = await caller_of(request)

    app.include_router(_health(services))
    app.include_router(_joining(services), prefix="/api/v1")
    guarded = [Depends(authorised)]
    app.include_router(_devices(services), prefix="/api/v1", dependencies=guarded)
    app.include_router(_runs(services), prefix="/api/v1", dependencies=guarded)
    app.include_router(key_routes(access), prefix="/api/v1", dependencies=guarded)
    app.include_router(chat_routes(services, caller_of), prefix="/v1")
    for routes in (embedding_routes, task_routes, collection_routes):
        app.include_router(routes(services.texts), prefix="/v1", dependencies=[Depends(remembered)])
    if services.metrics is not None:
        app.include_router(_metrics(services.metrics, access))

    @app.get("/api/v1/openapi.json", dependencies=guarded, include_in_schema=False)
    def openapi() -> dict[str, Any]:
        """What this page of the API looks like to a machine."""
        return app.openapi()

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


def _metrics(metrics: Exposition, access: Access) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=Response)
    def read_metrics(authorization: Annotated[str, Header()] = "") -> Response:
        """What serving and federated rounds do, in Prometheus' text format."""
        if not access.may_read_metrics(authorization):
            raise AccessDenied("show the token in metrics.token as 'Authorization: Bearer …'")
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _joining(services: Services) -> APIRouter:
    router = APIRouter(tags=["devices"])

    @router.post("/devices/join")
    def join(body: Join) -> dict[str, Any]:
        """Spend a one-time token; the answer says whom to trust and where to connect."""
        if not topics.is_name(body.name) or body.name == topics.KEY_HOLDER:
            raise DataError(f"{body.name!r} is not a device name: 1 to 48 of a-z, 0-9 and hyphens")
        key = parse_public(body.public_key)
        services.store.join(body.token, DeviceId(body.name), key, now=services.now())
        holder = services.key_holder
        return {
            "coordinator": format_public(services.coordinator),
            "key_holder": format_public(holder) if holder is not None else "",
            "broker_host": services.broker[0],
            "broker_port": services.broker[1],
        }

    return router


def _devices(services: Services) -> APIRouter:
    router = APIRouter(tags=["devices"])

    @router.get("/devices")
    def list_devices() -> list[dict[str, Any]]:
        """Every device that joined, and whether it is present."""
        return [
            {
                "name": device.name,
                "public_key": format_public(device.public_key),
                "fingerprint": fingerprint(device.public_key),
                "joined_at": device.joined_at,
                "state": services.fleet.state(device.name),
            }
            for device in services.store.devices()
        ]

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

    @router.get("/runs")
    def list_runs() -> list[dict[str, Any]]:
        """All runs, oldest first."""
        return [dataclasses.asdict(view_run(store, row)) for row in store.runs()]

    @router.get("/runs/{run}")
    def show_run(run: str) -> dict[str, Any]:
        """One run with its rounds."""
        return dataclasses.asdict(view_run(store, store.run(RunId(run))))

    @router.get("/runs/{run}/events")
    def list_events(run: str) -> list[dict[str, Any]]:
        """Everything that happened in a run, oldest first."""
        return run_events(store, store.run(RunId(run)))

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
        services.stop_run(store.run(RunId(run)).run, body.reason)
        return {"run": run}

    return router
