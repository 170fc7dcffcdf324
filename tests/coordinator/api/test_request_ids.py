"""Every answer carries its request's name, also where no route answered."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from coordinator.api.app import create_app
from tests.support.scripted_engine import services_of


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(services_of([])))


@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/api/v1/runs", "/v1/models"])
def test_answers_and_refusals_carry_the_clients_name(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"X-Request-Id": "order-7.A_b"})
    assert answer.headers["x-request-id"] == "order-7.A_b"


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a;b", "ü"])
def test_a_name_that_is_none_is_replaced_by_one_of_ours(client: TestClient, name: str) -> None:
    given = {
        client.get("/healthz", headers={b"X-Request-Id": name.encode()}).headers["x-request-id"]
        for _ in range(2)
    }
    assert len(given) == 2
    assert all(each.startswith("req-") for each in given)
