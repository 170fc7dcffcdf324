"""Commands around the coordinator: ``llmos up``, ``run``, ``device``, ``key``."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.errors import AccessDenied, ConfigError, CoordinatorUnavailable, RoundError

if TYPE_CHECKING:
    from coordinator.inference.upstream_wire import AdapterNames
    from coordinator.people.oidc import OidcSettings

up = typer.Typer(add_completion=False)
run = typer.Typer(help="Federated runs.", no_args_is_help=True)
device = typer.Typer(help="The fleet.", no_args_is_help=True)
key = typer.Typer(help="Keys for the HTTP API.", no_args_is_help=True)

Home = Annotated[Path, typer.Option(envvar="LLMOS_HOME", help="The coordinator's folder.")]
Url = Annotated[
    str,
    typer.Option(
        envvar="LLMOS_URL",
        help="The coordinator's address; else of the one in --home. LLMOS_CA names a file with the "
        "certificate by which it is known, if it is another machine's.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]

DEFAULT_HOME = Path("~/.llmos/coordinator")
DEFAULT_URL = ""
PAGE = 200
"""As many items as a page may have."""
WORTH_SAYING = 0.001
"""A share of saturated values above this is shown: it costs accuracy, and a wider range cures it."""


@up.command()
def start(
    home: Home = DEFAULT_HOME,
    port: Annotated[int, typer.Option(help="API port; 0 finds a free one.")] = 8443,
    broker_port: Annotated[
        int | None,
        typer.Option(help="Broker port, else 1883, or 8883 with TLS; 0 finds a free one."),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="API and broker speak TLS; devices get certificates.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on, 0.0.0.0 for all; any but loopback speaks TLS."),
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address by which devices reach this machine; the first is what they are "
            "told. May be given again."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="PEM with the API's certificate, in place of one made here."),
    ] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM with the key of that.")] = None,
    certificate_hours: Annotated[
        float, typer.Option(help="Life of a device's certificate; it is renewed after two thirds.")
    ] = 168.0,
    broker: Annotated[
        str, typer.Option(help="HOST:PORT of a broker that runs already; else one is started.")
    ] = "",
    key_holder: Annotated[
        str, typer.Option(help="The key holder's public key ('llmos keyholder init' prints it).")
    ] = "",
    model: Annotated[
        str, typer.Option(help="Language model to serve at /v1: a folder or hub id.")
    ] = "",
    cache: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_CACHE",
            help="Exact answers are kept in 'memory', 'none', or redis://HOST:PORT/0, and prompts' "
            "beginnings there too.",
        ),
    ] = "memory",
    encoder: Annotated[
        str,
        typer.Option(
            help="Model that embeds and classifies texts: a folder, a hub id or 'none'; "
            "else MiniLM if it is on this machine."
        ),
    ] = "",
    reader: Annotated[
        str, typer.Option(help="Model that finds answers in passages: a folder or hub id.")
    ] = "",
    vectors: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_VECTORS",
            help="postgresql://… with pgvector, for collections of passages; else files in the home.",
        ),
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_STORE",
            help="postgresql://… for devices, keys, runs and rounds; else a file in the home.",
        ),
    ] = "",
    watch: Annotated[
        Path | None,
        typer.Option(
            envvar="LLMOS_WATCH",
            help="TOML file with the rules for alarms, a webhook and quarantine; else HOME/watch.toml.",
        ),
    ] = None,
    otel_endpoint: Annotated[
        str,
        typer.Option(
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="http://HOST:PORT of an OTLP receiver for spans (extra 'otel'); else none are made.",
        ),
    ] = "",
    engine: Annotated[
        str, typer.Option(help="What runs --model: 'onnx' on the processor, 'transformers'.")
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="'cpu' or 'cuda'; else a GPU where there is one.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="Of its weights: fp32, int8, int4 (onnx); fp32, bf16, fp16 (transformers)."
        ),
    ] = "auto",
    slots: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests that it works on at once.")
    ] = 16,
    kv_memory: Annotated[
        int,
        typer.Option(
            min=0, help="MiB for keys and values; 0: an eighth of all, or what a GPU has left."
        ),
    ] = 0,
    replicas: Annotated[
        int, typer.Option(help="Processes that hold --model, each with its share of the cores.")
    ] = 1,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that hold a part of --model each.")
    ] = 1,
    upstream: Annotated[
        str, typer.Option(help="In place of --model: addresses of who serves it, by commas.")
    ] = "",
    upstream_model: Annotated[str, typer.Option(help="The model as they call it.")] = "",
    upstream_encoder: Annotated[
        str, typer.Option(help="Of theirs, the model that embeds texts, in place of --encoder.")
    ] = "",
    upstream_reader: Annotated[
        str, typer.Option(help="Of theirs, the model that finds answers, in place of --reader.")
    ] = "",
    upstream_key_env: Annotated[
        str,
        typer.Option(
            help="Environment variable with their key: one for all, or one each, by commas."
        ),
    ] = "",
    upstream_adapters: Annotated[
        str, typer.Option(help="How they call a run's adapter: 'llmos' (MODEL:RUN) or 'plain'.")
    ] = "llmos",
    oidc_issuer: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_OIDC_ISSUER",
            help="https://… of a provider of identities, where people can log in.",
        ),
    ] = "",
    oidc_client_id: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_OIDC_CLIENT_ID",
            help="What it calls this coordinator; the secret is in LLMOS_OIDC_SECRET, or in the "
            "file that LLMOS_OIDC_SECRET_FILE names.",
        ),
    ] = "",
    oidc_roles: Annotated[
        str,
        typer.Option(
            envvar="LLMOS_OIDC_ROLES",
            help="Who gets in, by commas: VALUE=ROLE of the claim; else nobody.",
        ),
    ] = "",
    oidc_claim: Annotated[
        str,
        typer.Option(envvar="LLMOS_OIDC_CLAIM", help="The claim with somebody's groups or roles."),
    ] = "groups",
    oidc_name: Annotated[
        str, typer.Option(envvar="LLMOS_OIDC_NAME", help="The claim with somebody's name.")
    ] = "preferred_username",
) -> None:
    """Start a coordinator: registry, federated rounds, HTTP API and a broker."""
    from coordinator.inference.engines import Serving
    from coordinator.listening import Listening
    from coordinator.process import run_coordinator
    from shared.logs import set_up_logs

    set_up_logs(as_json=not sys.stderr.isatty())
    listening = Listening.of_options(
        host,
        tls=tls,
        names=tuple(name or ()),
        certificate=certificate,
        private_key=private_key,
        certificate_hours=certificate_hours,
    )
    if broker_port is None:
        broker_port = 8883 if listening.tls else 1883
    run_coordinator(
        home.expanduser(),
        port=port,
        broker_port=broker_port,
        listening=listening,
        broker=broker,
        key_holder=key_holder,
        cache=cache,
        encoder=encoder,
        reader=reader,
        vectors=vectors,
        store_at=store,
        oidc=_oidc(oidc_issuer, oidc_client_id, oidc_roles, claim=oidc_claim, name=oidc_name),
        say=typer.echo,
        watch_file=watch.expanduser() if watch is not None else None,
        otel_endpoint=otel_endpoint,
        serving=Serving(
            model=model,
            engine_kind=engine,
            device=device,
            precision=precision,
            slots=slots,
            kv_mib=kv_memory,
            replicas=replicas,
            tensor_parallel=tensor_parallel,
            upstream=upstream,
            upstream_model=upstream_model,
            upstream_encoder=upstream_encoder,
            upstream_reader=upstream_reader,
            upstream_keys=_from_environment(upstream_key_env),
            adapter_names=_adapter_names(upstream_adapters),
        ),
    )


def _oidc(issuer: str, client_id: str, roles: str, *, claim: str, name: str) -> OidcSettings | None:
    """The provider of identities; its secret has no place on a command line."""
    from coordinator.people.oidc import OidcSettings

    if not issuer:
        if client_id or roles:
            raise ConfigError(["--oidc-issuer: is missing"], source="options")
        return None
    lines = [line.strip() for line in roles.split(",") if line.strip()]
    if unclear := [line for line in lines if not line.rpartition("=")[0].strip()]:
        raise ConfigError(
            [f"--oidc-roles: expected VALUE=ROLE, not {line!r}" for line in unclear],
            source="options",
        )
    pairs = [line.rpartition("=") for line in lines]
    return OidcSettings(
        issuer=issuer,
        client_id=client_id,
        client_secret=_oidc_secret(),
        roles={value.strip(): role.strip() for value, _, role in pairs},
        role_claim=claim,
        name_claim=name,
    )


def _oidc_secret() -> str:
    path = os.environ.get("LLMOS_OIDC_SECRET_FILE", "")
    if not path:
        return os.environ.get("LLMOS_OIDC_SECRET", "")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(
            [f"LLMOS_OIDC_SECRET_FILE: {path} cannot be read: {err}"], source="options"
        ) from err


def _from_environment(variable: str) -> str:
    """A key, which has no place on a command line that every process can read."""
    if not variable:
        return ""
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigError(
            [f"--upstream-key-env: the variable {variable} is not set"], source="options"
        )
    return value


def _adapter_names(text: str) -> AdapterNames:
    if text not in ("llmos", "plain"):
        raise ConfigError(
            [f"--upstream-adapters: 'llmos' or 'plain', not {text!r}"], source="options"
        )
    return "plain" if text == "plain" else "llmos"


def _address_in(home: Path) -> str:
    """Where the coordinator that works in ``home`` listens."""
    try:
        return str(json.loads((home / "ready.json").read_bytes())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return "http://127.0.0.1:8443"


class Client:
    """The coordinator's API, for command lines and the demo."""

    def __init__(self, url: str, token: str, *, authorities: Path | None = None) -> None:
        """``authorities``: by whom a server is known, PEM; ``None``: by those of this machine.

        Raises:
            StorageError: there is no certificate in it.
        """
        import httpx

        from shared.tls import client_context

        known_by = True if authorities is None else client_context(authorities.read_text("ascii"))
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=30, trust_env=False, verify=known_by
        )

    @classmethod
    def of_home(cls, home: Path, url: str) -> Client:
        """Use the admin token in the coordinator's folder, or ``LLMOS_TOKEN``.

        An empty ``url`` is the address of the coordinator that works in the folder.
        """
        home = home.expanduser()
        path = home / "admin.token"
        token = os.environ.get("LLMOS_TOKEN", "")
        if not token:
            try:
                token = path.read_text(encoding="ascii").strip()
            except OSError as err:
                raise AccessDenied(
                    f"no admin token in {path}: start the coordinator with 'llmos up', "
                    "name its folder with --home, or set LLMOS_TOKEN"
                ) from err
        named = os.environ.get("LLMOS_CA", "")
        beside = Path(named) if named else home / "tls" / "trusted.pem"
        return cls(url or _address_in(home), token, authorities=beside if beside.exists() else None)

    def close(self) -> None:
        """Close the connections that are kept open between requests."""
        self._http.close()

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        return self._ask("GET", path)

    def items(self, path: str) -> list[Any]:
        """GET a whole listing, page by page."""
        found: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self.page(path, cursor)
            found += page["items"]
            cursor = page["next"]
        return found

    def page(self, path: str, cursor: str) -> Any:
        """GET one page of a listing, as large as there are; the first for an empty cursor."""
        joint = "&" if "?" in path else "?"
        return self.get(f"{path}{joint}limit={PAGE}" + (f"&cursor={cursor}" if cursor else ""))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST a JSON body, as JSON."""
        return self._ask("POST", path, json=body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """PUT a JSON body, as JSON."""
        return self._ask("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        """DELETE, as JSON."""
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as err:
            raise CoordinatorUnavailable(
                f"no coordinator answers at {self._http.base_url}: start one with 'llmos up', "
                "or name its address with --url"
            ) from err
        if response.is_success:
            return response.json()
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = response.text[:200]
        if response.status_code in (401, 403):
            raise AccessDenied(detail)
        raise RoundError(detail)


@run.command("submit")
def submit_run(
    job: Annotated[Path, typer.Argument(help="The job, a TOML file.")],
    probe: Annotated[Path, typer.Option(help="Public labelled examples that judge the adapters.")],
    text_column: Annotated[str, typer.Option()] = "text",
    label_column: Annotated[str, typer.Option()] = "label",
    group_column: Annotated[str, typer.Option(help="Show results apart by it.")] = "",
    seed: Annotated[int, typer.Option(help="Draws cohorts.")] = 0,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    from shared.config import read_toml
    from shared.data_files import read_examples
    from shared.job import Job

    table = read_toml(Job, job).model_dump()
    examples = read_examples(
        probe,
        text_column=text_column,
        label_column=label_column,
        group_column=group_column or None,
    )
    body = {
        "job": table,
        "probe": [[e.text, e.label, e.group] for e in examples],
        "seed": seed or secrets.randbelow(2**31),
    }
    view = Client.of_home(home, url).post("/api/v1/runs", body)
    typer.echo(json.dumps(view) if as_json else f"submitted {view['run']}")


@run.command("ls")
def list_runs(home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List runs."""
    views = Client.of_home(home, url).items("/api/v1/runs?order=oldest")
    if as_json:
        typer.echo(json.dumps(views))
        return
    table = Table("run", "state", "rounds", "accuracy")
    for view in views:
        accuracy = f"{view['accuracy']['']:.3f}" if view["accuracy"] else "-"
        table.add_row(view["run"], view["state"], f"{view['round']}/{view['rounds']}", accuracy)
    Console().print(table)


@run.command("show")
def show_run(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show one run, round by round."""
    view = Client.of_home(home, url).get(f"/api/v1/runs/{name}")
    if as_json:
        typer.echo(json.dumps(view))
        return
    table = Table("round", "state", "invited", "reported", "accuracy", "loss", "note")
    for r in view["rounds"]:
        accuracy = f"{r['accuracy']['']:.3f}" if r["accuracy"] else "-"
        loss = f"{r['loss']:.3f}" if r["loss"] is not None else "-"
        notes = [r["reason"], *(f"{device}: {why}" for device, why in r["declined"].items())]
        if (r["saturated"] or 0) > WORTH_SAYING:
            notes.append(
                f"{r['saturated']:.1%} of the values were out of range: raise protection.value_range"
            )
        note = "; ".join(text for text in notes if text)
        cells = (r["round"], r["state"], r["invited"], r["reported"], accuracy, loss, note)
        table.add_row(*(escape(str(cell)) for cell in cells))
    console = Console()
    console.print(f"{view['run']}: {view['state']} {view['reason']}".rstrip(), markup=False)
    console.print(table)


@run.command("logs")
def show_logs(
    name: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it is over.")] = False,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print what happened in a run, oldest first."""
    from coordinator.store.store import ENDINGS

    client, cursor, shown, over = Client.of_home(home, url), "", 0, False
    while True:
        # The last page is asked for again: what is added comes behind what it had.
        page = client.page(f"/api/v1/runs/{name}/events", cursor)
        for event in page["items"][shown:]:
            typer.echo(json.dumps(event, ensure_ascii=False) if as_json else _as_line(event))
            over = over or event["event"] in ENDINGS
        shown = len(page["items"])
        if page["next"] is not None:
            cursor, shown = page["next"], 0
        elif not follow or over:
            return
        else:
            time.sleep(1.0)


def _as_line(event: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(event["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    what = f"round {event['round']}: {event['event']}" if event["round"] else event["event"]
    facts = {k: v for k, v in event.items() if k not in ("at", "round", "event")}
    if "accuracy" in facts and isinstance(facts["accuracy"], dict):
        facts["accuracy"] = f"{facts['accuracy'].get('', 0.0):.3f}"
    if "cohort" in facts:
        facts["cohort"] = len(facts["cohort"])
    return " ".join([f"{at}Z", what, *(f"{name}={value}" for name, value in facts.items())])


@run.command("stop")
def stop_run(name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL) -> None:
    """End a run; what it has learnt so far stays."""
    Client.of_home(home, url).post(f"/api/v1/runs/{name}/stop", {})
    typer.echo(f"stopping {name}")


@device.command("token")
def new_token(
    minutes: Annotated[float, typer.Option(help="How long it is valid.")] = 15.0,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print a one-time token with which one device may join."""
    answer = Client.of_home(home, url).post("/api/v1/devices/tokens", {"valid_s": minutes * 60})
    typer.echo(json.dumps(answer) if as_json else answer["token"])


@device.command("ls")
def list_devices(
    home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """List the devices that joined."""
    devices = Client.of_home(home, url).items("/api/v1/devices")
    if as_json:
        typer.echo(json.dumps(devices))
        return
    table = Table("device", "standing", "state", "version", "condition", "ε left", "fingerprint")
    for entry in devices:
        left = "-" if entry["budget_left"] is None else f"{entry['budget_left']:g}"
        told = (entry["version"] or "-", entry["condition"] or "-", left)
        cells = (entry["name"], entry["standing"], entry["state"], *told, entry["fingerprint"])
        table.add_row(*(escape(cell) for cell in cells))
    Console().print(table)


Reason = Annotated[str, typer.Option(help="Kept beside it, and in the audit log.")]


@device.command("show")
def show_device(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show one device: who it is, what it told of itself, and how it took part in the last runs."""
    view = Client.of_home(home, url).get(_of_one("devices", name))
    if as_json:
        typer.echo(json.dumps(view))
        return
    heard = (
        "not since the coordinator began" if view["heard_at"] is None else _as_day(view["heard_at"])
    )
    left = "not told" if view["budget_left"] is None else f"{view['budget_left']:g}"
    facts = {
        "standing": view["standing"],
        "state": view["state"],
        "fingerprint": view["fingerprint"],
        "joined": _as_day(view["joined_at"]),
        "heard": heard,
        "version": view["version"] or "not told",
        "would decline": view["condition"] or "-",
        "ε left": left,
    }
    for fact, value in facts.items():
        typer.echo(f"{fact}: {value}")
    table = Table("run", "invited", "took part", "declined")
    for each in view["runs"]:
        declined = "; ".join(f"round {number}: {code}" for number, code, _ in each["declined"])
        cells = (each["run"], each["invited"], each["took_part"], declined or "-")
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)


@device.command("quarantine")
def quarantine_device(
    name: str,
    reason: Reason = "by an operator",
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Neither invite a device nor listen to it, until it is let out."""
    done = Client.of_home(home, url).post(
        _of_one("devices", name, "/quarantine"), {"reason": reason}
    )
    typer.echo(json.dumps(done) if as_json else f"{name} is quarantined")


@device.command("release")
def release_device(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Let a device out of quarantine."""
    done = Client.of_home(home, url).delete(_of_one("devices", name, "/quarantine"))
    typer.echo(json.dumps(done) if as_json else f"{name} is trusted again")


@device.command("revoke")
def revoke_device(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Shut a device out for good: its name and its key may never join again."""
    done = Client.of_home(home, url).delete(_of_one("devices", name))
    typer.echo(json.dumps(done) if as_json else f"{name} is revoked")


def _of_one(kind: str, name: str, deed: str = "") -> str:
    """Where one device or key is in the API, whatever its name is."""
    return f"/api/v1/{kind}/{quote(name, safe='')}{deed}"


@key.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose it is: 1 to 48 of a-z, 0-9 and hyphens.")],
    role: Annotated[
        str,
        typer.Option(help="caller (asks models), viewer, auditor, operator, admin or device."),
    ] = "caller",
    models: Annotated[
        str, typer.Option(help="Those it may ask, by commas; NAME* is all that begin so; else all.")
    ] = "",
    tasks: Annotated[
        str,
        typer.Option(help="Those it may ask, by commas: classify, answer, recommend; else all."),
    ] = "",
    collections: Annotated[
        str, typer.Option(help="Those it may use, by commas; NAME* is all that begin so; else all.")
    ] = "",
    days: Annotated[float, typer.Option(help="How long it is valid; 0: for ever.")] = 0.0,
    priority: Annotated[
        int, typer.Option(help="-10 to 10: higher goes first; 0 is everybody's.")
    ] = 0,
    tokens_per_minute: Annotated[
        int, typer.Option(help="Quota of prompts and answers together; 0: none.")
    ] = 0,
    public_cache: Annotated[
        bool, typer.Option("--public-cache", help="Share cached answers with others who say so.")
    ] = False,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    body = {
        "name": name,
        "role": role,
        "models": _names(models),
        "tasks": _names(tasks),
        "collections": _names(collections),
        "days": days or None,
        "priority": priority,
        "tokens_per_minute": tokens_per_minute,
        "public_cache": public_cache,
    }
    made = Client.of_home(home, url).post("/api/v1/keys", body)
    typer.echo(json.dumps(made) if as_json else made["key"])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@key.command("ls")
def list_keys(home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List all keys that were ever made, without their secrets."""
    keys = Client.of_home(home, url).items("/api/v1/keys")
    if as_json:
        typer.echo(json.dumps(keys))
        return
    table = Table("key", "role", "for", "begins", "state", "priority", "tokens a minute", "cache")
    for entry in keys:
        quota = entry["tokens_per_minute"] or "-"
        shared = "public" if entry["public_cache"] else "own"
        narrowed = "; ".join(
            f"{kind} {', '.join(entry[kind])}"
            for kind in ("models", "tasks", "collections")
            if entry[kind]
        )
        cells = (entry["name"], entry["role"], narrowed or "-", f"{entry['prefix']}…")
        more = (_key_state(entry), entry["priority"], quota, shared)
        table.add_row(*(escape(str(cell)) for cell in (*cells, *more)))
    Console().print(table)


def _key_state(entry: dict[str, Any]) -> str:
    if entry["revoked_at"] is not None:
        return "revoked"
    if entry["quarantined_at"] is not None:
        return f"in quarantine since {_as_day(entry['quarantined_at'])}"
    if entry["expires_at"] is None:
        return "valid"
    day = _as_day(entry["expires_at"])
    return f"until {day}" if entry["expires_at"] > time.time() else f"expired {day}"


def _as_day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%MZ")


@key.command("quarantine")
def quarantine_key(
    name: str,
    reason: Reason = "by an operator",
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Let a key open nothing until it is let out; everything else of it stays."""
    done = Client.of_home(home, url).post(_of_one("keys", name, "/quarantine"), {"reason": reason})
    typer.echo(json.dumps(done) if as_json else f"{name} is in quarantine")


@key.command("release")
def release_key(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Let a key out of quarantine."""
    done = Client.of_home(home, url).delete(_of_one("keys", name, "/quarantine"))
    typer.echo(json.dumps(done) if as_json else f"{name} is valid again")


@key.command("revoke")
def revoke_key(
    name: str, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Revoke a key; within a second it opens nothing. Its name is not given again."""
    done = Client.of_home(home, url).delete(_of_one("keys", name))
    typer.echo(json.dumps(done) if as_json else f"revoked {name}")


@key.command("rotate")
def rotate_key(
    name: str,
    overlap: Annotated[
        float, typer.Option(help="Hours that the old secret goes on; 0: it ends at once.")
    ] = 24.0,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Give a key another secret and print it, this once. Role, quota and name stay."""
    body = {"overlap_hours": overlap}
    made = Client.of_home(home, url).post(_of_one("keys", name, "/rotate"), body)
    typer.echo(json.dumps(made) if as_json else made["key"])
    if not as_json:
        typer.echo(f"the old secret ends {_as_day(made['former_ends_at'])}", err=True)
