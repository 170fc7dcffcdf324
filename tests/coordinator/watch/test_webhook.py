"""B1 to B4 against a real server: every alarm arrives, signed, whatever happened meanwhile."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.api.alarms import alarm_view
from coordinator.store.alarms import Alarm
from coordinator.store.store import Store
from coordinator.watch.webhook import (
    FIRST_S,
    GIVEN_UP_S,
    LONGEST_S,
    Webhook,
    signature,
    wait_s,
    webhook_secret,
)
from shared.errors import ConfigError
from tests.support.brokers import eventually
from tests.support.stores import sqlite_place
from tests.support.webhooks import Listener, fits, listening

NOW = 1_700_000_000.5


def told_of(alarm: Alarm) -> dict[str, Any]:
    return alarm_view(alarm).model_dump()


class Sending:
    """A webhook over rows; time passes as the test says."""

    def __init__(self, store: Store, home: Path, url: str) -> None:
        self.rows = store.alarms
        self.now = NOW
        self.secret = webhook_secret(home)
        self.webhook = Webhook(
            self.rows, url=url, secret=self.secret, view=told_of, now=lambda: self.now
        )

    def raised(self, subject: str = "kitchen") -> Alarm:
        return self.rows.add(
            Alarm(
                id=0,
                rule="bad-signatures",
                severity="warning",
                subject_kind="device",
                subject=subject,
                detail="protocol.signature: x",
                count=1,
                first_at=self.now,
                last_at=self.now,
                next_try_at=self.now,
            )
        )


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(sqlite_place(tmp_path).url, tmp_path)
    yield found
    found.close()


@pytest.fixture
def sending(store: Store, tmp_path: Path, listener: Listener) -> Sending:
    return Sending(store, tmp_path, listener.url)


def test_an_alarm_arrives_once_and_signed(sending: Sending, listener: Listener) -> None:
    alarm = sending.raised()
    sending.webhook.send_due()
    sending.webhook.send_due()
    ((headers, body),) = listener.received
    assert fits(sending.secret, headers, body)
    assert not fits(sending.secret, headers, body + b" ")
    assert not fits(sending.secret, headers | {"webhook-timestamp": "1"}, body)
    assert headers["webhook-timestamp"] == str(int(NOW))
    assert headers["webhook-id"] == f"alarm-{alarm.id}-{int(NOW)}"
    assert headers["content-type"] == "application/json"
    assert listener.alarms() == [told_of(alarm)]
    kept = sending.rows.alarm(alarm.id)
    assert kept is not None
    assert (kept.sent_at, kept.next_try_at, kept.tries) == (NOW, None, 1)


def test_the_signature_is_that_of_the_specifications_example() -> None:
    """The example in the reference implementations of Standard Webhooks."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  it is in the specification
    body = b'{"test": 2432232314}'
    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_one_that_did_not_arrive_is_sent_later_with_the_same_id(
    sending: Sending, listener: Listener
) -> None:
    listener.statuses = [500, 404, 302]
    sending.raised()
    for tries in (1, 2, 3):
        assert sending.webhook.send_due() == min(wait_s(tries), 60.0)
        sending.now += wait_s(tries) - 0.1
        assert 0.0 < sending.webhook.send_due() <= 0.1001
        assert len(listener.received) == tries
        sending.now += 0.1
    sending.webhook.send_due()
    assert len({headers["webhook-id"] for headers, _ in listener.received}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in listener.received}) == 4
    assert sending.rows.next_to_send() is None


def test_a_redirect_is_not_followed(sending: Sending, listener: Listener) -> None:
    listener.statuses = [307]
    listener.headers = {"Location": "/elsewhere"}
    sending.raised()
    sending.webhook.send_due()
    assert listener.paths == ["/alarms"]


def test_what_was_raised_while_nobody_listened_arrives_after_a_restart(
    store: Store, tmp_path: Path, listener: Listener
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    first = Sending(store, tmp_path, nowhere)
    first.raised("kitchen")
    first.raised("garage")
    first.webhook.start()
    assert eventually(lambda: all(alarm.tries for alarm in store.alarms.alarms(limit=9)))
    first.webhook.close()
    second = Sending(store, tmp_path, listener.url)
    second.now += FIRST_S
    second.webhook.start()
    assert eventually(lambda: store.alarms.next_to_send() is None)
    second.webhook.close()
    assert {alarm["subject"]["name"] for alarm in listener.alarms()} == {"kitchen", "garage"}


def test_after_a_day_it_is_given_up_and_the_next_is_not(
    sending: Sending, listener: Listener
) -> None:
    listener.statuses = [500] * 1000
    old = sending.raised()
    while sending.rows.next_to_send() is not None:
        sending.webhook.send_due()
        sending.now += LONGEST_S
    assert GIVEN_UP_S / LONGEST_S - 1 <= len(listener.received) <= GIVEN_UP_S / LONGEST_S + 10
    kept = sending.rows.alarm(old.id)
    assert kept is not None
    assert (kept.sent_at, kept.next_try_at) == (None, None)
    listener.statuses = []
    sending.raised("garage")
    sending.webhook.send_due()
    assert listener.alarms()[-1]["subject"]["name"] == "garage"


def test_waits_double_up_to_an_hour() -> None:
    assert [wait_s(tries) for tries in (1, 2, 3, 9, 10, 10_000)] == [
        10.0,
        20.0,
        40.0,
        2560.0,
        3600.0,
        3600.0,
    ]


def test_whoever_raises_waits_for_no_answer(
    store: Store, tmp_path: Path, listener: Listener
) -> None:
    listener.held = threading.Event()
    slow = Sending(store, tmp_path, listener.url)
    slow.raised("kitchen")
    slow.webhook.start()
    assert eventually(lambda: bool(listener.received))
    slow.raised("garage")
    slow.webhook.wake()
    assert len(listener.received) == 1
    listener.held.set()
    assert eventually(lambda: store.alarms.next_to_send() is None)
    slow.webhook.close()


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    made = webhook_secret(tmp_path)
    assert webhook_secret(tmp_path) == made
    assert stat.S_IMODE((tmp_path / "webhook.secret").stat().st_mode) == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert webhook_secret(other) != made


@pytest.mark.parametrize("damage", ["", "whsec_", "whsec_short", "secret", "whsec_é", "whsec_%%"])
def test_a_secret_that_is_none_is_refused_and_kept(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "webhook.secret"
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"webhook\.secret"):
        webhook_secret(tmp_path)
    assert path.read_text(encoding="utf-8") == damage
