"""An operator may shut a device out and let it in again; only an admin shuts it out for good."""

from __future__ import annotations

from pathlib import Path

from shared.types import DeviceId, PublicKey
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
