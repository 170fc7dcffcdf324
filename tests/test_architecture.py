"""The shape of the project, kept by machine so that reviews need not."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("shared", "coordinator", "edge_agent", "sim")

FRAMEWORKS = frozenset(
    {
        "fastapi",
        "flwr",
        "onnxruntime",
        "opacus",
        "paho",
        "sqlalchemy",
        "tenseal",
        "torch",
        "transformers",
    }
)
"""What costs seconds or tens of megabytes to import, or is to be met in one place only."""


_GRAPHS = {
    "coordinator/registry/causal_graph.py",
    "coordinator/registry/graph.py",
    "coordinator/registry/model_import.py",
    "coordinator/registry/passes.py",
    "coordinator/registry/reader_import.py",
    "coordinator/registry/quantisation.py",
}
_ROWS = {
    "coordinator/store/backup.py",
    "coordinator/store/database.py",
    "coordinator/store/migrations/__init__.py",
    "coordinator/store/migrations/versions/r0003_devices_runs_rounds.py",
    "coordinator/store/migrations/versions/r0004_api_keys.py",
    "coordinator/store/migrations/versions/r0006_key_roles.py",
    "coordinator/store/migrations/versions/r0007_people.py",
    "coordinator/store/migrations/versions/r0008_device_standings.py",
    "coordinator/store/migrations/versions/r0009_api_key_quarantines.py",
    "coordinator/store/migrations/versions/r0010_alarms.py",
    "coordinator/store/migrations/versions/r0011_certificates.py",
    "coordinator/store/alarms.py",
    "coordinator/store/certificates.py",
    "coordinator/store/people.py",
    "coordinator/store/store.py",
    "coordinator/store/tables.py",
}
HOMES = {
    "alembic": {
        "coordinator/store/migrations/__init__.py",
        "coordinator/store/migrations/versions/r0003_devices_runs_rounds.py",
        "coordinator/store/migrations/versions/r0004_api_keys.py",
        "coordinator/store/migrations/versions/r0005_signpost.py",
        "coordinator/store/migrations/versions/r0006_key_roles.py",
        "coordinator/store/migrations/versions/r0007_people.py",
        "coordinator/store/migrations/versions/r0008_device_standings.py",
        "coordinator/store/migrations/versions/r0009_api_key_quarantines.py",
        "coordinator/store/migrations/versions/r0010_alarms.py",
        "coordinator/store/migrations/versions/r0011_certificates.py",
    },
    "argon2": {"coordinator/people/passwords.py"},
    "amqtt": {"coordinator/broker/amqtt_main.py"},
    "dp_accounting": {"sim/bench/accountant.py"},
    "fastapi_offline": {"coordinator/api/docs.py"},
    "joserfc": {"coordinator/people/oidc.py"},
    "jinja2": {"coordinator/inference/engine_text.py", "sim/html_report.py"},
    "lancedb": {"coordinator/retrieval/lance_vectors.py"},
    "onnx": _GRAPHS,
    "psutil": {"edge_agent/conditions.py"},
    "onnxruntime_genai": {"coordinator/registry/causal_graph.py"},
    "onnxruntime": {
        "coordinator/inference/onnx_model.py",
        "coordinator/registry/quantisation.py",
        "shared/models/graph_session.py",
    },
    "opentelemetry": {"coordinator/tracing.py"},
    "packaging": {"coordinator/security/gather.py"},
    "opacus": {
        "edge_agent/prv.py",
        "edge_agent/training/dp_sgd.py",
        "sim/bench/accountant.py",
    },
    "paho": {"shared/transport/mqtt.py"},
    "pgvector": {"coordinator/retrieval/postgres_vectors.py"},
    "psycopg": {"coordinator/retrieval/postgres_vectors.py", "coordinator/store/database.py"},
    "pyarrow": {"coordinator/retrieval/lance_vectors.py"},
    "peft": {"shared/models/pytorch.py"},
    "prometheus_client": {"coordinator/exposition.py"},
    "redis": {"coordinator/inference/redis_store.py"},
    "sqlalchemy": _ROWS,
    "starlette": {
        "coordinator/api/answering.py",
        "coordinator/api/events.py",
        "coordinator/api/gate.py",
        "coordinator/api/openai_errors.py",
        "coordinator/api/problems.py",
        "coordinator/api/request_ids.py",
        "coordinator/api/roles.py",
        "coordinator/api/safe_headers.py",
        "coordinator/api/traced.py",
        "edge_agent/api/app.py",
        "edge_agent/api/server.py",
    },
    "nvflare": {"sim/bench/nvflare_he.py"},
    "tenseal": {"shared/crypto/public_key.py", "sim/bench/nvflare_he.py"},
    "tokenizers": {
        "coordinator/inference/engine_text.py",
        "coordinator/reading/training.py",
        "shared/models/graph_session.py",
        "sim/bench/serving_baselines.py",
    },
    "torch": {
        "coordinator/inference/tensor_parallel.py",
        "coordinator/inference/tensor_parallel_worker.py",
        "coordinator/inference/transformers_runtime.py",
        "coordinator/reading/training.py",
        "coordinator/registry/tiny.py",
        "coordinator/registry/causal_graph.py",
        "edge_agent/training/dp_sgd.py",
        "shared/models/pytorch.py",
        "sim/bench/serving_baselines.py",
    },
    "llguidance": {"coordinator/inference/schema.py"},
    "transformers": {
        "coordinator/inference/tensor_parallel.py",
        "coordinator/inference/transformers_runtime.py",
        "coordinator/reading/training.py",
        "coordinator/registry/tiny.py",
        "shared/models/pytorch.py",
        "sim/bench/serving_baselines.py",
    },
    "uvicorn": {"coordinator/api/sockets.py", "shared/http_connections.py", "shared/loopback.py"},
    "wandb": {"sim/wandb_child.py"},
}
"""The modules that may name a foreign library: when it changes, they change and no other."""


def loaded_by(statement: str) -> set[str]:
    """Top-level modules present after ``statement`` runs in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def test_the_instrument_sees_an_import() -> None:
    assert "sqlalchemy" in loaded_by("import sqlalchemy")
    assert "json" not in loaded_by("")


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import shared.errors, shared.types, shared.files, shared.extras", set()),
        ("import shared.processes", set()),
        ("import shared.command_line", set()),
        ("import shared.transport.memory, shared.transport.mqtt", set()),
        ("import shared.crypto.public_key", set()),
        ("import shared.models.pytorch", set()),
        ("import coordinator.federation.rounds", set()),
        ("import coordinator.broker.embedded", set()),
        ("import edge_agent.agent", set()),
        ("import edge_agent.participate", set()),
        ("import edge_agent.commands, edge_agent.membership", set()),
        ("import shared.key_holder.holder, shared.key_holder.commands", set()),
        ("import edge_agent.training.dp_sgd", set()),
    ],
)
def test_importing_stays_light(statement: str, allowed: set[str]) -> None:
    assert loaded_by(statement) & FRAMEWORKS <= allowed


@pytest.mark.parametrize("package", OURS)
def test_our_packages_are_ours(package: str) -> None:
    """Their names are common words: nothing installed may shadow them."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)


def test_imports_point_the_ways_that_were_agreed() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def libraries_named_in(source: str) -> set[str]:
    """What a module imports, at its top or inside, also through ``require("…")``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
            names |= {str(ast.literal_eval(each)) for each in node.args[:1] if is_text(each)}
    return {name.partition(".")[0] for name in names}


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_each_foreign_library_is_named_in_its_own_modules_only() -> None:
    found: dict[str, set[str]] = {library: set() for library in HOMES}
    for package in OURS:
        for file in (ROOT / package).rglob("*.py"):
            for library in libraries_named_in(file.read_text(encoding="utf-8")) & HOMES.keys():
                found[library].add(str(file.relative_to(ROOT)))
    assert found == HOMES


def test_every_folder_of_ours_is_a_package() -> None:
    """A folder without ``__init__.py`` is invisible to the import contracts and the wheel."""
    folders = {file.parent for package in OURS for file in (ROOT / package).rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()
