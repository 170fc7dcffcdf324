"""Answering on a device against the same encoder in torch, in one run.

Both sides tokenise, run one text at a time on one thread and pool. Their requests alternate, so
that whatever else the machine does meets both.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.registry.model_import import import_model
from edge_agent.inference.installed import Serving, install, install_model
from shared.data_files import Example
from shared.errors import ChildDied
from shared.models.adapter import Adapter, AdapterShape
from shared.models.architecture import read_architecture
from shared.models.encoder import find_base_model
from shared.models.graph_session import GraphSession, LoadedAdapter
from shared.models.pytorch import TextEncoder
from shared.types import FloatMatrix
from sim.bench.bars import Bar, told
from sim.central import train_centrally

LENGTHS: Final = (32, 128)
REQUESTS: Final = 1000
SWAPS: Final = 100
THREADS: Final = 4
RANK: Final = 8
COLD_STARTS: Final = 3

_COLD_TORCH: Final = """
import sys
from shared.models.encoder import find_base_model
from shared.models.pytorch import TextEncoder
print(TextEncoder(find_base_model(sys.argv[1])).encode([sys.argv[2]]).shape)
"""
_COLD_DEVICE: Final = """
import sys
from pathlib import Path
from edge_agent.inference.installed import open_model
print(open_model(Path(sys.argv[1])).classify(sys.argv[2]).label)
"""

Progress = Callable[[str], None]


def bench_edge(
    base: str, examples: Sequence[Example], *, repeats: int, progress: Progress
) -> dict[str, Any]:
    """Measure int8 answers against torch.

    Args:
        base: Folder or hub id of the encoder.
        examples: Labelled texts: a head is trained on one half, labels are compared on the other.
        repeats: Timed requests per length and side.
        progress: Told what is being measured.

    Returns:
        JSON values: ``bars`` with what was promised, and the figures behind them.

    Raises:
        LlmOsError: something needed is missing.
    """
    found = find_base_model(base)
    built = read_architecture(found)
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as temporary:
        folder = Path(temporary)
        progress("importing the model")
        imported = import_model(base, folder / "models", passes="quick")
        session, encoder = GraphSession(imported.folder), TextEncoder(found, threads=1)
        progress("training a head, comparing labels")
        head, agreement, compared = _labels(session, encoder, examples, found.digest)
        shape = AdapterShape(
            labels=head.labels,
            features=head.features,
            method="lora",
            rank=RANK,
            alpha=2.0 * RANK,
            slots=built.slots("lora", 2),
        )
        adapted = _random_inner(shape, head)
        plain, inner = session.load_adapter(head), session.load_adapter(adapted)
        figures: dict[str, Any] = {}
        bars: list[Bar] = []
        for length, wanted in zip(LENGTHS, (3.5, 2.5), strict=True):
            progress(f"answering {length} tokens")
            text = _text_of(session, examples, length)
            times = _alternating(
                {
                    "torch": partial(encoder.encode, [text]),
                    "int8": partial(session.answer, text, plain),
                    "int8 with LoRA": partial(session.answer, text, inner),
                },
                repeats,
            )
            figures[f"p50_ms_{length}"] = {k: round(v, 3) for k, v in times.items()}
            bars.append(Bar(f"speed-up at {length} tokens", times["torch"] / times["int8"], wanted))
            overhead = times["int8 with LoRA"] / times["int8"] - 1
            bars.append(Bar(f"LoRA overhead at {length} tokens", overhead, 0.10, at_least=False))
        bars.append(Bar("labels that agree with fp32", agreement, 0.98))
        progress("first answers of fresh processes")
        cold = _cold_starts(folder, imported.folder, head, base, examples[0].text)
        figures["first_answer_s"] = cold
        bars.append(Bar("first answer", cold["torch"] / cold["device"], 10.0))
        progress(f"{REQUESTS} requests with {SWAPS} swaps")
        swap_ms, failed = _swapping(session, head, adapted, [e.text for e in examples[:200]])
        figures["swap_ms"] = round(swap_ms, 3)
        figures["requests"] = {"made": REQUESTS, "failed": failed, "swaps": SWAPS}
        bars.append(Bar("adapter swap in ms", swap_ms, 10.0, at_least=False))
        bars.append(Bar("failed requests", failed, 0, at_least=False))
        return told(
            "edge",
            bars,
            base=base,
            labels_compared=compared,
            model=imported.manifest.model_dump(include={"quantise", "layers", "passes"}),
            figures=figures,
        )


def _labels(
    session: GraphSession, encoder: TextEncoder, examples: Sequence[Example], base: Any
) -> tuple[Adapter, float, int]:
    """A head trained on every other example, and how often both sides agree on the rest."""
    learnt, asked = examples[::2], examples[1::2][:1000]
    labels = tuple(sorted({example.label for example in examples}))
    start = Adapter.initial(AdapterShape(labels=labels, features=encoder.features), base)
    features = encoder.encode([example.text for example in learnt])
    head = train_centrally(start, features, [example.label for example in learnt])
    texts = [example.text for example in asked]
    # One at a time here as well: what is compared is the device with its fp32 original.
    wide = np.concatenate([encoder.encode([text]) for text in texts])
    loaded = session.load_adapter(head)
    small = [loaded.labels[int(session.answer(text, loaded)[1].argmax())] for text in texts]
    agreed = sum(a == b for a, b in zip(head.predict(wide), small, strict=True))
    return head, agreed / len(texts), len(texts)


def _random_inner(shape: AdapterShape, head: Adapter) -> Adapter:
    """The head with matrices inside the base that change what it says."""
    rng = np.random.default_rng(5)
    tensors: dict[str, FloatMatrix] = {
        name: np.asarray(rng.normal(scale=0.02, size=size), np.float32)
        for name, size in shape.inner.items()
    }
    return Adapter(shape, head.base, dict(head.tensors) | tensors)


def _text_of(session: GraphSession, examples: Sequence[Example], length: int) -> str:
    """A text of exactly so many tokens, out of the examples' own words."""
    words = " ".join(example.text for example in examples[:200]).split()
    for end in count(1):
        text = " ".join(words[:end])
        if session.tokens(text) >= length:
            break
    # The last word may have brought several tokens; single letters bring one each.
    text = " ".join(words[: end - 1])
    while session.tokens(text) < length:
        text += " a"
    return text


def _alternating(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each side; their calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        for _ in range(5):
            call()
    for _ in range(repeats):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def _cold_starts(
    folder: Path, model: Path, head: Adapter, base: str, text: str
) -> dict[str, float]:
    """Median seconds from the start of a process to its first answer, in turns."""
    home = folder / "home"
    home.mkdir()
    serving = Serving(
        manifest=install_model(home, model),
        adapter=head.digest,
        calibration=None,
        released_at=time.time(),
        run="bench",
        task="text-classification",
    )
    install(home, serving, head.to_bytes())
    programs = {"torch": (_COLD_TORCH, base), "device": (_COLD_DEVICE, str(home))}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(COLD_STARTS + 1):
        for name, (program, argument) in programs.items():
            began = time.perf_counter()
            done = subprocess.run(  # noqa: S603  our own program
                [sys.executable, "-c", program, argument, text], capture_output=True, check=False
            )
            if done.returncode != 0:
                raise ChildDied(done.stderr.decode(errors="replace")[-500:])
            if turn:  # the first turn reads the files into the cache, for both
                seconds[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(values), 3) for name, values in seconds.items()}


def _swapping(
    session: GraphSession, head: Adapter, adapted: Adapter, texts: Sequence[str]
) -> tuple[float, int]:
    """Median milliseconds to bring in an adapter, and failed requests while that goes on."""
    loaded: list[LoadedAdapter] = [session.load_adapter(head)]
    failed = [0]
    lock = threading.Lock()

    def ask(number: int) -> None:
        adapter = loaded[-1]
        _, logits = session.answer(texts[number % len(texts)], adapter)
        if logits.shape != (len(adapter.labels),) or not math.isfinite(float(logits.sum())):
            with lock:
                failed[0] += 1

    swaps: list[float] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for block in range(SWAPS):
            size = REQUESTS // SWAPS
            asked = [pool.submit(ask, block * size + offset) for offset in range(size)]
            data = (adapted if block % 2 == 0 else head).to_bytes()
            began = time.perf_counter()
            loaded.append(session.load_adapter(Adapter.from_bytes(data)))
            swaps.append((time.perf_counter() - began) * 1000)
            for future in asked:
                if future.exception() is not None:
                    failed[0] += 1
    return statistics.median(swaps), failed[0]
