"""A release is in force whole or not at all, and gets there whatever happens on the way.

Coordinator and agents are the real ones, on virtual time; the released model is a tiny one.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent import releases as module
from edge_agent.agent import ANSWERING_S, Agent
from edge_agent.inference import installed as installed_module
from edge_agent.inference.installed import Installation
from shared import files as files_module
from shared.crypto.sum_worker import SumWorker
from shared.errors import StorageError
from shared.files import digest_of
from shared.models.adapter import Adapter
from shared.transport.memory import Link
from shared.types import Digest
from shared.wire import chunks as chunks_module
from shared.wire.chunks import WINDOW_BYTES
from shared.wire.envelope import NO_ROUND, NO_RUN
from shared.wire.messages import Answering, Release
from tests.support import tiny_graph as tiny
from tests.support.coordination import World
from tests.support.releasing import CALIBRATION, Device, Maker, finish_run, rewrite_manifest

FIRST = tiny.tiny_adapter("lora", seed=1)
SECOND = tiny.tiny_adapter("bottleneck", seed=2)
LONG_ENOUGH_S = 30.0


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer is padded to several windows of the transfer."""
    pytest.importorskip("onnx")
    folder = tiny.make_tiny_model(tmp_path_factory.mktemp("tiny"))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" " * (WINDOW_BYTES + 100_000))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    data = tokenizer.read_bytes()
    files["tokenizer.json"] = {"sha256": digest_of(data), "bytes": len(data)}
    rewrite_manifest(folder, files=files)
    return folder


@pytest.fixture
def maker(original: Path, tmp_path: Path) -> Maker:
    return Maker(Path(shutil.copytree(original, tmp_path / "tiny")))


@pytest.fixture
def world(tmp_path: Path, maker: Maker) -> Iterator[World]:
    with ExitStack() as stack:
        folder = tmp_path / "world"
        folder.mkdir()
        adder = SumWorker()
        stack.callback(adder.close)
        world = World(folder, adder, stack=stack)
        world.make_release = maker
        yield world


def release_of(maker: Maker, learnt: Adapter, **changes: Any) -> Release:
    """A release as the coordinator would send it, but for ``changes``."""
    data = learnt.to_bytes()
    release = Release(
        released_from="run-1",
        task="text-classification",
        adapter=learnt.digest,
        adapter_bytes=len(data),
        manifest=maker.manifest,
        manifest_bytes=(maker.folder / "manifest.json").stat().st_size,
        calibration=CALIBRATION.model_dump_json(),
    )
    return replace(release, **changes)


def tidy(device: Device, adapters: int = 1) -> bool:
    """Nothing of a release lies about but what is in force, and the adapter before it."""
    serving = device.serving
    assert serving is not None
    models = sorted(path.name for path in (device.home / "models").iterdir())
    adapters_kept = list((device.home / "adapters").iterdir())
    blobs = [path for path in device.files if path.startswith("blobs")]
    assert blobs == [], "fetched and not put away"
    assert [name for name in models if name.startswith(".")] == [], "half a model"
    assert serving.manifest in models
    assert len(adapters_kept) <= adapters
    return True


def test_a_finished_run_is_what_every_device_answers_with(world: World, maker: Maker) -> None:
    devices = [Device(world, name) for name in ("attic", "cellar")]
    world.start()
    digest = finish_run(world, "run-1", FIRST)
    world.run_for(LONG_ENOUGH_S)
    for device in devices:
        assert device.installed(digest, maker.manifest)
        assert device.serving is not None
        assert (device.serving.run, device.serving.task) == ("run-1", "text-classification")
        assert device.serving.calibration == CALIBRATION
        assert device.released == 1
        assert device.said[-1].kind != "blob-request"
        assert Answering(digest, maker.manifest) in device.said
        assert tidy(device)
    assert len(maker.made) == 1
    model = Installation(devices[0].home).current().model
    assert model is not None
    assert model.adapter.digest == FIRST.digest


def test_what_is_in_force_is_neither_sent_nor_fetched_again(world: World) -> None:
    device = Device(world, "attic")
    finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    asked = len(device.fetched)
    world.run_for(3 * ANSWERING_S)
    assert len(device.fetched) == asked == 4
    assert device.released == 1


def test_a_device_that_was_away_is_told_when_it_says_what_it_answers_with(
    world: World, maker: Maker
) -> None:
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    device = Device(world, "late")
    world.run_for(LONG_ENOUGH_S)
    assert device.installed(digest, maker.manifest)


def test_with_the_model_there_only_the_adapter_is_fetched(world: World, maker: Maker) -> None:
    device = Device(world, "attic")
    finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    device.said.clear()
    second = finish_run(world, "run-2", SECOND)
    world.coordinator._releases.run_over()  # type: ignore[union-attr]
    world.run_for(LONG_ENOUGH_S)
    assert device.installed(second, maker.manifest)
    assert device.fetched == [second]
    assert tidy(device, adapters=2)


def test_nothing_is_in_force_before_everything_is_there(world: World, maker: Maker) -> None:
    """Held up at every chunk, and looked at each time."""
    device = Device(world, "attic", link=Link(latency_s=0.2, bandwidth_bytes_per_s=100_000))
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    looks = 0
    while device.serving is None:
        assert device.released == 0
        assert (
            not (device.home / "models" / maker.manifest / "model.onnx").exists()
            or (device.home / "models" / maker.manifest / "tokenizer.json").exists()
        )
        looks += 1
        world.run_for(0.25)
    assert looks > 50
    assert device.installed(digest, maker.manifest)
    world.run_for(5)
    assert device.released == 1
    assert tidy(device)


@pytest.mark.parametrize("loss", [0.1, 0.4])
def test_lost_chunks_are_asked_for_again(world: World, maker: Maker, loss: float) -> None:
    device = Device(world, "attic", link=Link(latency_s=0.01, loss=loss))
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    assert world.run(lambda: device.released == 1, for_s=4000)
    assert device.installed(digest, maker.manifest)
    assert tidy(device)


class Snapshots:
    """Copies a device's home before and after every step on the way to a release."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._device = device
        self._folder = folder
        self._lock = threading.Lock()
        self.taken: list[Path] = []

    def take(self) -> None:
        with self._lock:
            state = self._folder / str(len(self.taken))
            # Not with shutil's own copying: that is one of the steps.
            shutil.copytree(
                self._device.home,
                state,
                copy_function=lambda file, copy: Path(copy).write_bytes(Path(file).read_bytes()),
            )
            self.taken.append(state)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.take()
            result = call(*args, **kwargs)
            self.take()
            return result

        return wrapped


STEPS = (
    (module, "write_durably"),
    (module, "install"),
    (installed_module, "write_durably"),
    (files_module, "sync_folder"),
    (files_module, "make_folder"),
    (shutil, "copyfile"),
    (chunks_module, "move_durably"),
    (Agent, "receive"),
)


@pytest.mark.parametrize("before", [False, True])
def test_a_power_cut_at_any_step_ends_with_the_same(
    world: World, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """The disk is taken as it stood at every step, and an agent is started on each."""
    device = Device(world, "attic")
    world.start()
    if before:
        finish_run(world, "run-0", SECOND)
        world.run_for(LONG_ENOUGH_S)
    snapshots = Snapshots(device, tmp_path / "cuts")
    with monkeypatch.context() as patch:
        for where, name in STEPS:
            patch.setattr(where, name, snapshots.around(getattr(where, name)))
        digest = finish_run(world, "run-1", FIRST)
        world.coordinator._releases.run_over()  # type: ignore[union-attr]
        world.run_for(LONG_ENOUGH_S)
    assert device.installed(digest, maker.manifest)
    assert len(snapshots.taken) > 10
    old = {None} if not before else {SECOND.digest}
    for state in dict.fromkeys(snapshots.taken):
        device.cut()
        serving = (
            json.loads((state / "serving.json").read_text())["adapter"]
            if (state / "serving.json").exists()
            else None
        )
        assert serving in old | {digest}
        device.start(home=state)
        assert world.run(lambda: device.installed(digest, maker.manifest), for_s=2 * ANSWERING_S), (
            state
        )
        world.run_for(5.0)
        assert tidy(device, adapters=2 if before else 1), state


def test_a_newer_release_overtakes_the_one_under_way(
    world: World, maker: Maker, original: Path, tmp_path: Path
) -> None:
    device = Device(world, "attic", link=Link(bandwidth_bytes_per_s=400_000))
    finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(3)
    assert device.serving is None
    assert any("model-" in path for path in device.files), "the first is on its way"
    maker.folder = Path(shutil.copytree(original, tmp_path / "newer"))
    rewrite_manifest(maker.folder, name="newer")
    second = finish_run(world, "run-2", SECOND)
    world.coordinator._releases.run_over()  # type: ignore[union-attr]
    assert world.run(lambda: device.released == 1, for_s=300)
    assert device.installed(second, maker.manifest)
    world.run_for(ANSWERING_S)
    assert device.released == 1
    assert tidy(device)


def test_what_an_earlier_process_left_of_another_release_is_cleared_away(
    world: World, maker: Maker
) -> None:
    """Power was lost in the middle of a release that has been replaced since."""
    device = Device(world, "attic")
    for left in ("model-" + "1" * 64, ".keep"):
        (device.home / "blobs" / left).mkdir(parents=True)
        (device.home / "blobs" / left / "model.onnx.part").write_bytes(b"half")
    shutil.rmtree(device.home / "blobs" / ".keep")
    for left in ("released-" + "2" * 64, "released-" + "3" * 64 + ".part"):
        (device.home / "blobs" / left).write_bytes(b"half")
    half = device.home / "models" / f".{'4' * 64}.aa.tmp"
    half.mkdir(parents=True)
    (half / "model.onnx").write_bytes(b"half")
    device.cut()
    device.start()
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    assert device.installed(digest, maker.manifest)
    assert tidy(device)


# What is refused

other_base = tiny.tiny_adapter("lora", base=Digest("c" * 64))


@pytest.fixture
def working(world: World, maker: Maker) -> Device:
    """A device that answers with the first adapter."""
    device = Device(world, "attic")
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    assert device.installed(digest, maker.manifest)
    return device


def still_as_before(device: Device, manifest: Digest, outside: list[Path]) -> None:
    """The old release is in force and unharmed, and nothing lies about anywhere."""
    assert device.installed(FIRST.digest, manifest)
    assert device.released == 1
    assert tidy(device)
    assert everything_but_homes(device) == outside
    assert len(list((device.home / "models").iterdir())) <= 2


def everything_but_homes(device: Device) -> list[Path]:
    root = device.home.parents[2]
    changing = {"coordinator", "home"}
    return sorted(
        path for path in root.rglob("*") if not changing & set(path.relative_to(root).parts)
    )


def offer(world: World, device: Device, release: Release, blobs: list[bytes] = []) -> None:  # noqa: B006
    """Have the coordinator offer something, whose parts it hands out as well."""
    files = {digest_of(data): world.store.blob(world.store.keep(data)) for data in blobs}
    releases = world.coordinator._releases
    assert releases is not None
    assert releases._current is not None
    before = releases._current
    releases._current = replace(before, message=release, files=before.files | files)
    world.coordinator.fleet.send(device.name, release, run=NO_RUN, round_=NO_ROUND)
    world.run_for(LONG_ENOUGH_S)


@pytest.mark.parametrize(
    "adapter",
    [
        other_base.to_bytes(),
        tiny.tiny_adapter("lora").to_bytes()[:-1],
        b"no adapter at all",
        b"",
    ],
    ids=["another base", "cut short", "junk", "empty"],
)
def test_an_adapter_that_does_not_fit_leaves_the_old_one_in_force(
    world: World, maker: Maker, working: Device, adapter: bytes
) -> None:
    outside = everything_but_homes(working)
    release = release_of(maker, FIRST, adapter=digest_of(adapter), adapter_bytes=len(adapter))
    offer(world, working, release, [adapter])
    still_as_before(working, maker.manifest, outside)


def hostile(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: manifest | changes


def with_file(name: str, **entry: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        files = dict(manifest["files"])
        files[name] = files["tokenizer.json"] | entry
        return manifest | {"files": files, "name": "hostile"}

    return change


HOSTILE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "the folder above": with_file("../x"),
    "an absolute path": with_file("/tmp/llmos-hostile"),  # noqa: S108
    "a folder below": with_file("sub/x"),
    "hidden": with_file(".x"),
    "no name": with_file(""),
    "the manifest itself": with_file("manifest.json"),
    "no digest": with_file("x", sha256="../../identity.key"),
    "more than a device holds": with_file("x", bytes=module.MODEL_LIMIT),
    "no file at all": hostile(files={}),
    "another format": hostile(format=2),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_manifest_is_refused_and_touches_nothing(
    world: World, maker: Maker, working: Device, name: str
) -> None:
    outside = everything_but_homes(working)
    manifest = json.loads((maker.folder / "manifest.json").read_text())
    data = json.dumps(HOSTILE[name](manifest)).encode()
    release = release_of(maker, FIRST, manifest=digest_of(data), manifest_bytes=len(data))
    offer(world, working, release, [data])
    still_as_before(working, maker.manifest, outside)
    assert not Path("/tmp/llmos-hostile").exists()  # noqa: S108


def test_a_control_a_manifest_with_nothing_wrong_in_it_is_taken(
    world: World, maker: Maker, working: Device
) -> None:
    manifest = json.loads((maker.folder / "manifest.json").read_text())
    data = json.dumps(hostile(name="newer")(manifest)).encode()
    release = release_of(maker, FIRST, manifest=digest_of(data), manifest_bytes=len(data))
    offer(world, working, release, [data])
    assert working.installed(FIRST.digest, digest_of(data))
    assert working.released == 2
    assert tidy(working)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_of_the_model_that_is_another_is_refused(
    world: World, maker: Maker, working: Device, name: str
) -> None:
    """Right in its own digest, wrong in its length: what is fetched is not what is named."""
    outside = everything_but_homes(working)
    manifest = json.loads((maker.folder / "manifest.json").read_text())
    manifest["files"][name]["bytes"] -= 1
    manifest["name"] = "damaged"
    data = json.dumps(manifest).encode()
    release = release_of(maker, FIRST, manifest=digest_of(data), manifest_bytes=len(data))
    offer(world, working, release, [data])
    still_as_before(working, maker.manifest, outside)


def test_a_file_that_was_damaged_at_the_coordinator_is_refused_until_it_is_whole_again(
    world: World, maker: Maker
) -> None:
    whole = (maker.folder / "model.onnx").read_bytes()
    (maker.folder / "model.onnx").write_bytes(whole[:-1] + b"?")
    device = Device(world, "attic")
    finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    assert device.serving is None
    assert device.files == []
    (maker.folder / "model.onnx").write_bytes(whole)
    world.run_for(2 * ANSWERING_S)
    assert device.installed(FIRST.digest, maker.manifest)
    assert tidy(device)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": "../../identity.key"},
        {"manifest": "A" * 64},
        {"manifest": ""},
        {"manifest": "5" * 64, "manifest_bytes": module.MANIFEST_LIMIT + 1},
        {"adapter": "5" * 64, "adapter_bytes": module.ADAPTER_LIMIT + 1},
        {"adapter": "5" * 64, "calibration": "{}"},
        {"adapter": "5" * 64, "calibration": "no json"},
    ],
)
def test_a_release_that_is_malformed_or_too_large_is_not_even_fetched(
    world: World, maker: Maker, working: Device, changes: dict[str, Any]
) -> None:
    outside, said = everything_but_homes(working), list(working.fetched)
    offer(world, working, release_of(maker, FIRST, **changes))
    assert working.fetched == said
    assert working.failures == [], "what a peer sends never raises"
    still_as_before(working, maker.manifest, outside)


def test_what_was_refused_for_good_is_not_fetched_over_and_over(
    world: World, maker: Maker, working: Device
) -> None:
    """The device goes on saying what it answers with, and is offered the same each time."""
    data = other_base.to_bytes()
    release = release_of(maker, FIRST, adapter=digest_of(data), adapter_bytes=len(data))
    offer(world, working, release, [data])
    asked = len(working.said)
    working.said.clear()
    world.run_for(5 * ANSWERING_S)
    assert asked
    assert working.fetched == []
    good = release_of(maker, SECOND)
    offer(world, working, good, [SECOND.to_bytes()])
    assert working.installed(SECOND.digest, maker.manifest)


@pytest.mark.parametrize("where", ["fetching", "installing"])
def test_a_full_disk_is_waited_out(
    world: World, maker: Maker, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    device = Device(world, "attic")
    full = True

    def refuses(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if full:
                raise StorageError("the disk is full")
            return call(*args, **kwargs)

        return wrapped

    if where == "installing":
        monkeypatch.setattr(module, "install", refuses(installed_module.install))
    else:
        fetch = device.agent._downloads.fetch
        monkeypatch.setattr(device.agent._downloads, "fetch", refuses(fetch))
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(LONG_ENOUGH_S)
    assert device.serving is None
    full = False
    world.run_for(2 * ANSWERING_S)
    assert device.installed(digest, maker.manifest)
    assert tidy(device)
