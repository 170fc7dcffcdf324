"""Nothing listens in clear where another machine reaches it, and every mistake is named at once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from coordinator.listening import Listening
from shared.errors import ConfigError


def of(host: str = "127.0.0.1", **changes: Any) -> Listening:
    options: dict[str, Any] = {
        "tls": False,
        "names": (),
        "certificate": None,
        "private_key": None,
        "certificate_hours": 168.0,
    }
    return Listening.of_options(host, **(options | changes))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_is_in_clear_unless_asked_otherwise(host: str) -> None:
    assert not of(host).tls
    assert of(host, tls=True).tls


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])  # noqa: S104  that is the point
def test_any_other_address_speaks_tls(host: str) -> None:
    assert of(host).tls


def test_what_others_are_told_is_the_first_name_or_the_address_or_this_machines_name() -> None:
    assert of("192.0.2.7").told == "192.0.2.7"
    assert of("192.0.2.7", names=("a.example", "b.example")).told == "a.example"
    assert of("0.0.0.0").told == socket.getfqdn()  # noqa: S104
    assert of("::1", tls=True).url(8443) == "https://[::1]:8443"
    assert of().url(8443) == "http://127.0.0.1:8443"


def test_the_certificate_is_for_every_name_once_and_for_this_machine() -> None:
    names = of("192.0.2.7", names=("a.example", "localhost")).certified
    assert names == ["a.example", "localhost", "192.0.2.7", "127.0.0.1", "::1"]
    assert "0.0.0.0" not in of("0.0.0.0").certified  # noqa: S104


def test_every_problem_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        of("somewhere", names=("a b",), certificate=Path("x.pem"), certificate_hours=0.001)
    for word in ("--host", "--name", "--private-key", "--certificate-hours"):
        assert word in str(refused.value)
