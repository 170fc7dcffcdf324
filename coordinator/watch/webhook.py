"""Sends alarms to an address, signed, until they arrive.

    B1  what was raised while nobody could be reached is sent later, also after a restart; it may
        arrive twice, with the same id
    B2  who listens can tell that it is ours and how old it is: signed as in Standard Webhooks 1.0
        (https://www.standardwebhooks.com), HMAC-SHA-256 over id, time and body
    B3  nothing is sent but to the address that was named: redirects are not followed, and nothing
        of the answer but its status is read
    B4  nobody waits for it

Tried again after 10 s, then twice as long each time up to an hour, for a day; then it is given up,
and the alarm still stands where it is listed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import structlog

from coordinator.store.alarms import Alarm, AlarmRows
from shared.errors import ConfigError, LlmOsError
from shared.files import write_durably

log = structlog.get_logger()

SECRET_FILE: Final = "webhook.secret"  # noqa: S105  a file's name
"""In the coordinator's home; who listens needs the same."""
FIRST_S: Final = 10.0
LONGEST_S: Final = 3600.0
GIVEN_UP_S: Final = 86_400.0
PATIENCE_S: Final = 10.0
_LOOK_S: Final = 60.0
"""Longest between two looks at what waits: another clock may have been set."""
_START: Final = "whsec_"


def webhook_secret(home: Path) -> str:
    """The secret in the home, made at first use and readable by its owner only.

    Raises:
        ConfigError: the file holds something else.
        StorageError: the disk refused.
    """
    path = home / SECRET_FILE
    if not path.exists():
        made = _START + base64.b64encode(secrets.token_bytes(32)).decode()
        write_durably(path, made.encode(), mode=0o600)
    secret = path.read_text(encoding="ascii", errors="replace").strip()
    _key_of(secret, path)
    return secret


def _key_of(secret: str, path: Path | None = None) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_START).encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if not secret.startswith(_START) or not 24 <= len(key) <= 64:
        problem = f"must be {_START} and 24 to 64 bytes in base64: remove it for a new one"
        raise ConfigError([problem], source=str(path or "webhook secret"))
    return key


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """What the header ``webhook-signature`` says (B2)."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    code = hmac.new(_key_of(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(code).decode()}"


def wait_s(tries: int) -> float:
    """How long to wait after so many tries have failed."""
    return min(LONGEST_S, FIRST_S * 2.0 ** min(tries - 1, 30))


class Webhook:
    """Sends what waits in the rows, on a thread of its own (B4)."""

    def __init__(
        self,
        rows: AlarmRows,
        *,
        url: str,
        secret: str,
        view: Callable[[Alarm], dict[str, Any]],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Send to ``url``, which was checked; ``view`` is what is sent of an alarm."""
        self._rows = rows
        self._url = url
        self._secret = secret
        self._view = view
        self._now = now
        self._woken = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="webhook")

    def start(self) -> None:
        """Begin with what waits (B1)."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new to be sent. Safe on any thread."""
        self._woken.set()

    def close(self) -> None:
        """End; what was not sent stays in its row."""
        self._over = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=PATIENCE_S + 1.0)

    def _run(self) -> None:
        while not self._over:
            self._woken.clear()
            try:
                pause_s = self.send_due()
            except LlmOsError as err:
                log.error("webhook.failed", code=err.code, error=str(err))
                pause_s = FIRST_S
            except Exception:  # a mistake with one alarm must not end the others
                log.exception("webhook.failed")
                pause_s = _LOOK_S
            self._woken.wait(pause_s)

    def send_due(self) -> float:
        """Send what is due; gives how long to wait until something is.

        Raises:
            StorageError: rows cannot be read or written; what was sent may be sent once more.
        """
        while not self._over:
            alarm = self._rows.next_to_send()
            if alarm is None or alarm.next_try_at is None:
                return _LOOK_S
            due_s = alarm.next_try_at - self._now()
            if due_s > 0:
                return min(due_s, _LOOK_S)
            problem = self._send(alarm)
            if not problem:
                self._rows.sent(alarm.id, now=self._now())
                continue
            tries = alarm.tries + 1
            later = self._now() + wait_s(tries)
            given_up = later - alarm.first_at > GIVEN_UP_S
            log.warning(
                "webhook.not_sent", alarm=alarm.id, tries=tries, problem=problem, given_up=given_up
            )
            self._rows.not_sent(alarm.id, next_try_at=None if given_up else later)
        return _LOOK_S

    def _send(self, alarm: Alarm) -> str:
        """Try once; gives what went wrong, nothing if it arrived (B3)."""
        at = int(self._now())
        told = datetime.fromtimestamp(alarm.first_at, UTC).isoformat()
        said = {"type": "alarm.raised", "timestamp": told, "data": self._view(alarm)}
        body = json.dumps(said, separators=(",", ":")).encode()
        name = f"alarm-{alarm.id}-{int(alarm.first_at)}"
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(at),
            "webhook-signature": signature(self._secret, name, at, body),
        }
        try:
            # A proxy that the environment names is for what leaves this machine.
            outside = self._url.startswith("https:")
            with (
                httpx.Client(timeout=PATIENCE_S, trust_env=outside) as client,
                client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                return "" if response.is_success else f"status {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            return type(err).__name__
