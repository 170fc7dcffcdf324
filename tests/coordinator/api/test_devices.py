"""An operator may shut a device out and let it in again; only an admin shuts it out for good."""

from __future__ import annotations

from pathlib import Path

from coordinator.fleet.transport_fleet import AboutDevice
from shared.types import DeviceId, PublicKey
from shared.wire import topics
from shared.wire.envelope import Post
from shared.wire.messages import Presence
from tests.support.coordinator_api import HEADERS, Api


def test_a_device_is_quarantined_let_out_and_revoked_for_good(tmp_path: Path) -> None:
    api = Api(tmp_path)
    token = api.store.new_token(expires_at=2.0)
    api.store.join(token, DeviceId("kitchen"), PublicKey(bytes(32)), now=1.0)
    path = "/api/v1/devices/kitchen"
    seen = []
    api.post(f"{path}/quarantine", {"reason": "odd"})
    seen.append(api.get(path).json()["standing"])
    api.client.delete(f"{path}/quarantine", headers=HEADERS)
    seen.append(api.get(path).json()["standing"])
    api.client.delete(path, headers=HEADERS)
    seen.append(api.get(path).json()["standing"])
    assert seen == ["quarantined", "trusted", "revoked"]
    assert api.client.delete(f"{path}/quarantine", headers=HEADERS).status_code == 404
    assert api.post("/api/v1/devices/nobody/quarantine", {}).status_code == 404
    api.store.close()


def test_what_a_device_told_of_itself_is_listed(tmp_path: Path) -> None:
    api = Api(tmp_path)
    api.join()
    facts = ("version", "condition", "budget_left")
    (listed,) = api.items("/api/v1/devices")
    assert [listed[fact] for fact in facts] == [None, None, None]
    (tmp_path / "device").mkdir()
    sealed = Post(api.device_key, tmp_path / "device").seal(Presence("idle"))
    api.fleet.open(topics.up("kitchen"), sealed)  # only now is it looked for in the registry
    api.fleet.set_about(DeviceId("kitchen"), AboutDevice("0.1.0", "no-examples", 3.25))
    for shown in (api.items("/api/v1/devices")[0], api.get("/api/v1/devices/kitchen").json()):
        assert [shown[fact] for fact in facts] == ["0.1.0", "no-examples", 3.25]
    api.usage.close()
    api.store.close()
