"""What finished last is released once, to whoever joined and to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.views import view_run
from shared.errors import ModelError, StorageError
from shared.files import digest_of
from shared.models.manifest import read_manifest
from shared.types import DeviceId, RunId
from shared.wire import topics
from shared.wire.envelope import NO_ROUND, NO_RUN, Post
from shared.wire.messages import BlobRequest
from tests.support import tiny_graph as tiny
from tests.support.coordination import RUN, World
from tests.support.releasing import Device, Maker, finish_run

FIRST = tiny.tiny_adapter("lora", seed=1)
SECOND = tiny.tiny_adapter("lora", seed=2)


@pytest.fixture
def maker(world: World, tmp_path: Path) -> Maker:
    pytest.importorskip("onnx")
    world.make_release = maker = Maker(tiny.make_tiny_model(tmp_path / "tiny"))
    return maker


def released(world: World, run: str) -> bool:
    return "released" in world.store.milestones(RunId(run))


def test_a_run_that_finishes_is_released_and_the_devices_are_told(
    world: World, maker: Maker
) -> None:
    """A whole run, up to its release; the adapter fits no model here, and what is sent is it."""
    plan = world.submit(training={"rounds": 1})
    *_, last = world.add_devices("abc")
    world.start()
    assert world.run()
    world.run_for(10)
    (made,) = maker.made
    assert made.plan == plan
    assert made.adapter.read_bytes() == world.adapter().to_bytes()
    assert sorted({example.label for example in made.examples}) == sorted(plan.labels)
    facts = world.store.milestones(RUN)["released"].facts
    assert facts["accuracy"] == 0.75
    assert view_run(world.store, world.store.run(RUN)).release == {
        "manifest": maker.manifest,
        "accuracy": 0.75,
    }
    last.send(BlobRequest(world.adapter().digest, 0, 10**6))
    world.run_for(1)
    assert last.blobs[world.adapter().digest] == world.adapter().to_bytes()


def test_a_coordinator_that_restarts_keeps_its_release_and_makes_it_once(
    world: World, maker: Maker
) -> None:
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    world.run(lambda: released(world, "run-1"), for_s=10)
    world.restart()
    device = Device(world, "attic")
    world.run_for(30)
    assert device.installed(digest, maker.manifest)
    assert len(maker.made) == 1


def test_a_restart_while_a_release_is_made_makes_it_again(world: World, maker: Maker) -> None:
    world.work_s = 20.0
    digest = finish_run(world, "run-1", FIRST)
    world.start()
    world.run_for(5)
    assert not released(world, "run-1")
    world.restart()
    device = Device(world, "attic")
    world.run_for(60)
    assert device.installed(digest, maker.manifest)
    assert len(maker.made) == 2


@pytest.mark.parametrize("first_is_last", [False, True])
def test_of_two_runs_the_one_that_finished_last_counts(
    world: World, maker: Maker, first_is_last: bool
) -> None:
    ends = (2.0, 1.0) if first_is_last else (1.0, 2.0)
    digests = [
        finish_run(world, f"run-{number}", adapter, at=at)
        for number, adapter, at in zip((1, 2), (FIRST, SECOND), ends, strict=True)
    ]
    device = Device(world, "attic")
    world.start()
    world.run_for(30)
    assert device.installed(digests[0 if first_is_last else 1], maker.manifest)
    assert len(maker.made) == 1


def test_a_run_that_did_not_finish_is_not_released(world: World, maker: Maker) -> None:
    world.submit()
    world.add_devices("abc")
    world.start()
    world.run(lambda: bool(world.rows))
    world.coordinator.stop_run(RUN, "enough")
    world.run_for(10)
    assert maker.made == []


def test_a_release_that_cannot_be_made_is_written_down_and_not_tried_again(
    world: World, maker: Maker
) -> None:
    maker.failure = ModelError("the weights are damaged")
    finish_run(world, "run-1", FIRST)
    device = Device(world, "attic")
    world.start()
    world.run_for(30)
    world.restart()
    world.run_for(30)
    assert len(maker.made) == 1
    facts = {"code": "model", "reason": "the weights are damaged"}
    assert world.store.milestones(RunId("run-1"))["not-released"].facts == facts
    assert view_run(world.store, world.store.run(RunId("run-1"))).release == facts
    assert device.serving is None
    maker.failure = None
    digest = finish_run(world, "run-2", SECOND)
    world.restart()
    world.run_for(30)
    assert device.installed(digest, maker.manifest)


def test_a_full_disk_while_making_is_waited_out(world: World, maker: Maker) -> None:
    maker.failure = StorageError("full")
    digest = finish_run(world, "run-1", FIRST)
    device = Device(world, "attic")
    world.start()
    world.run_for(10)
    assert not world.store.milestones(RunId("run-1")).keys() & {"released", "not-released"}
    maker.failure = None
    world.run_for(30)
    assert device.installed(digest, maker.manifest)


def test_without_a_way_to_make_them_nothing_is_released(world: World) -> None:
    finish_run(world, "run-1", FIRST)
    device = Device(world, "attic")
    world.start()
    world.run_for(70)
    assert device.serving is None
    assert world.failures == []


def test_a_release_whose_folder_is_gone_is_made_again(
    world: World, maker: Maker, tmp_path: Path
) -> None:
    finish_run(world, "run-1", FIRST)
    world.start()
    world.run(lambda: released(world, "run-1"), for_s=10)
    made = len(maker.made)
    maker.folder = (tmp_path / "tiny").rename(tmp_path / "elsewhere")
    world.restart()
    world.run_for(30)
    assert world.failures == []
    assert len(maker.made) == made + 1


# Who may have the files


def test_whoever_joined_may_have_every_part_and_nobody_else_any(world: World, maker: Maker) -> None:
    adapter = finish_run(world, "run-1", FIRST)
    joined = world.add_device("joined")
    stranger = world.add_device("stranger", joins=False)
    holder = world.network.attach(topics.KEY_HOLDER)
    holder_post = Post(world.holder_identity, world.folder)
    to_holder: list[bytes] = []
    branch = topics.down(DeviceId(topics.KEY_HOLDER))
    holder.open(lambda _, payload: to_holder.append(payload), (branch,))
    world.start()
    world.run(lambda: released(world, "run-1"), for_s=10)
    manifest, digest = read_manifest(maker.folder)
    parts = {str(adapter): FIRST.to_bytes(), digest: (maker.folder / "manifest.json").read_bytes()}
    parts |= {
        entry.sha256: (maker.folder / name).read_bytes() for name, entry in manifest.files.items()
    }
    for part in parts:
        request = BlobRequest(part, 0, 10**6)
        joined.send(request)
        stranger.send(request)
        holder.publish(
            topics.up(DeviceId(topics.KEY_HOLDER)),
            holder_post.seal(request, run=NO_RUN, round_=NO_ROUND),
        )
    world.run_for(5)
    assert joined.blobs == parts
    assert stranger.blobs == {}
    assert to_holder == []


def test_no_other_blob_is_handed_out(world: World, maker: Maker) -> None:
    finish_run(world, "run-1", FIRST)
    secret = world.store.keep(b"something else of the coordinator's")
    joined = world.add_device("joined")
    world.start()
    world.run(lambda: released(world, "run-1"), for_s=10)
    for digest in (secret, digest_of(b"nothing"), "../store.db", ""):
        joined.send(BlobRequest(digest, 0, 10**6))
    world.run_for(5)
    assert joined.blobs == {}
    assert world.failures == []
