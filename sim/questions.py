"""Questions to a fleet's devices, and what became of them: the second half of the demonstration."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from coordinator.releases import NOT_RELEASED, RELEASED
from coordinator.store.store import Store
from edge_agent.api.token import api_token
from edge_agent.inference.installed import Serving
from shared.config import read_json
from shared.data_files import Example
from shared.errors import ChildDied, RoundError
from shared.models.calibration import Calibration
from shared.models.manifest import read_manifest
from shared.types import DeviceId, Digest, RunId
from sim.fleet_processes import FleetProcesses

KNOWN: Final = 12
"""Held-out questions of the kind that was learnt."""

UNKNOWN: Final = 4
"""Questions about something else."""

PERSONAL: Final = (
    "My number is +44 20 7946 0958 and my e-mail ana.lopez@example.com: "
    "which museum should I see on Sunday?"
)
"""Nothing that was learnt, so it leaves the device, without what is personal."""

RELEASE_S: Final = 120.0
MODEL_S: Final = 120.0
ANSWER_S: Final = 60.0


def draw_questions(held_out: Sequence[Example], out_of_scope: Path, *, seed: int) -> list[str]:
    """Held-out examples, questions about something else, and one with personal data in it."""
    rng = np.random.default_rng([seed, 0xA5C])
    chosen = sorted(rng.permutation(len(held_out))[:KNOWN])
    with out_of_scope.open(encoding="utf-8", newline="") as file:
        others = [row["text"] for row in csv.DictReader(file)]
    strange = sorted(rng.permutation(len(others))[:UNKNOWN])
    return [*(held_out[i].text for i in chosen), *(others[i] for i in strange), PERSONAL]


def wait_for_release(
    fleet: FleetProcesses,
    devices: Sequence[DeviceId],
    run: RunId,
    adapter: Digest,
    watch: Callable[[int], None],
) -> None:
    """Wait until every device answers with what it helped to learn.

    Raises:
        RoundError: the coordinator could not make a release; the message says why.
        ChildDied: a process ended meanwhile, or it took too long.
    """

    def installed() -> bool:
        ready = sum(_answers_with(fleet.home(device), adapter) for device in devices)
        watch(ready)
        if ready == len(devices):
            return True
        release = fleet.client.get(f"/api/v1/runs/{run}")["release"]
        if "reason" in release:
            raise RoundError(f"what was learnt could not be released: {release['reason']}")
        return False

    if not fleet.wait_until(installed, timeout_s=RELEASE_S):
        raise ChildDied(f"devices did not install the release within {RELEASE_S:.0f} s")


def wait_for_model(fleet: FleetProcesses) -> dict[str, Any]:
    """Wait until the coordinator's language model answers; returns what it says of it.

    Raises:
        RoundError: it could not be loaded; the message says why.
        ChildDied: a process ended meanwhile, or it took too long.
    """
    card: dict[str, Any] = {}

    def ready() -> bool:
        models = fleet.client.get("/v1/models")["data"]
        (found,) = (model for model in models if "task" not in model)  # others embed texts
        card.update(found)
        if card["state"] == "failed":
            raise RoundError(f"the language model could not be loaded: {card['reason']}")
        return bool(card["state"] == "ready")

    if not fleet.wait_until(ready, timeout_s=MODEL_S):
        raise ChildDied(f"the language model was not ready after {MODEL_S:.0f} s")
    return card


def ask_devices(
    fleet: FleetProcesses,
    devices: Sequence[DeviceId],
    questions: Sequence[str],
    watch: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Ask each question at one of the devices, in turn, as an application on it would."""
    asked = []
    with httpx.Client(timeout=ANSWER_S, trust_env=False) as http:
        for number, question in enumerate(questions):
            device = devices[number % len(devices)]
            home = fleet.home(device)
            url = json.loads((home / "ready.json").read_text())["url"]
            response = http.post(
                f"{url}/v1/chat/completions",
                headers={"Authorization": f"Bearer {api_token(home)}"},
                json={"model": "llmos", "messages": [{"role": "user", "content": question}]},
            )
            if not response.is_success:
                raise RoundError(f"{device} did not answer: {response.text[:300]}")
            body = response.json()
            asked.append(
                {
                    "device": device,
                    "question": question,
                    "answer": body["choices"][0]["message"]["content"],
                    **body["llmos"],
                }
            )
            watch(number + 1)
    return asked


def told(asked: Sequence[Mapping[str, Any]], calibration: Calibration) -> dict[str, Any]:
    """The report's ``answers``: how many came from where, why, and some of them in full."""
    sources = Counter(answer["source"] for answer in asked)
    return {
        "local": sources["device"],
        "cloud": sources["coordinator"],
        "reasons": dict(Counter(answer["code"] for answer in asked)),
        "redacted": sum(sum(answer["redacted"].values()) for answer in asked),
        "target_error": calibration.target_error,
        "threshold": calibration.threshold,
        "examples": [dict(answer) for answer in asked],
        "curve": [point.model_dump() for point in calibration.curve],
    }


def released_model(store: Store, run: RunId) -> tuple[dict[str, Any], Calibration]:
    """The report's ``model``: what devices answer with, and its calibration.

    Raises:
        RoundError: the run was not released.
    """
    milestones = store.milestones(run)
    if RELEASED not in milestones:
        why = milestones[NOT_RELEASED].facts["reason"] if NOT_RELEASED in milestones else "not yet"
        raise RoundError(f"run {run} was not released: {why}")
    facts = milestones[RELEASED].facts
    manifest, _ = read_manifest(Path(facts["folder"]))
    model = manifest.model_dump(mode="json", include={"name", "quantise", "layers", "passes"})
    return model | {
        "manifest": facts["manifest"],
        "accuracy": facts["accuracy"],
    }, read_json(Calibration, facts["calibration"], source="calibration")


def _answers_with(home: Path, adapter: Digest) -> bool:
    serving = Serving.load(home)
    return serving is not None and serving.adapter == adapter
