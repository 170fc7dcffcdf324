"""A broker as a child process, for a machine that has no broker of its own.

    B1  without TLS it listens on a loopback address only, so it needs no passwords; with TLS nobody
        connects without a certificate, and a certificate's name is all that an access list goes by
    B2  it ends when its parent ends, however that ends (Linux), and on ``stop``
    B3  it remembers nothing: no retained message or session survives a restart

Mosquitto is used where it is installed. Otherwise amqtt serves from an
environment of its own (``.broker``, made by ``deploy/install-broker.sh``): its
typer and Flower's exclude each other, so it never shares ours.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from shared.errors import BrokerUnavailable, ConfigError

logger = logging.getLogger(__name__)

ROOT: Final = Path(__file__).parents[2]
"""The folder that holds our packages: the checkout, or site-packages."""

START_S: Final = 30.0
"""Longest wait for a broker to answer, on a machine with much else to do."""
STOP_S: Final = 3.0
PORT_ATTEMPTS: Final = 3
"""A free port may be taken by somebody else between finding and using it."""

_SBIN: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
"""Where packages put mosquitto; often not on an ordinary user's PATH."""

_MOSQUITTO_CONF: Final = """\
# Written at every start; changes here are lost.
listener {port} {host}
{who}
persistence false
# A slow subscriber must not lose updates: of 20,000 queued messages the default of 1000 kept a
# tenth, this kept all. Sizes in bytes; 2,000,000 is also Mosquitto 2.1's own default.
max_queued_messages 100000
max_inflight_messages 100
max_packet_size 2000000
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
log_type notice
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

_ANYBODY: Final = "allow_anonymous true"

# The name in a certificate is user name and client identifier: whoever connects under another's
# identifier would end the other's session.
_CERTIFIED: Final = """\
allow_anonymous false
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.3
cafile {authority}
certfile {certificate}
keyfile {key}
crlfile {revocations}
acl_file {access_list}"""

_LAUNCH: Final = """\
import os, sys
from shared.processes import die_with_parent
die_with_parent(int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""

AMQTT_WARNING: Final = (
    "Mosquitto is not installed, so amqtt stands in for it. It keeps no client from another's "
    "messages and may lose some under load (they are sent again): for use on this machine "
    "alone. `sh deploy/install-broker.sh` installs Mosquitto where it may."
)


def find_mosquitto() -> Path | None:
    """The mosquitto program, on the PATH or where packages put it."""
    found = shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), *_SBIN)))
    return Path(found) if found is not None else None


def find_amqtt_python(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The interpreter of amqtt's environment: ``LLMOS_BROKER_PYTHON``, or in ``.broker``.

    Raises:
        BrokerUnavailable: the variable names a file that is not there.
    """
    named = environ.get("LLMOS_BROKER_PYTHON")
    if named is None:
        ours = ROOT / ".broker" / "bin" / "python"
        return ours if ours.exists() else None
    if not Path(named).exists():
        raise BrokerUnavailable(f"LLMOS_BROKER_PYTHON names {named}, which does not exist")
    return Path(named)


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """What a broker with TLS reads, at its start and on every :meth:`EmbeddedBroker.reload`.

    Attributes:
        authority: The certificate of who signs for peers.
        certificate: The broker's own.
        key: The key of that.
        revocations: The authority's list of certificates that hold no more.
        access_list: Which user name may read and write which topics (mosquitto.conf(5)).
    """

    authority: Path
    certificate: Path
    key: Path
    revocations: Path
    access_list: Path


class EmbeddedBroker:
    """One broker process; a context manager from ``start`` to ``stop``."""

    kind: Literal["mosquitto", "amqtt"]
    """Which program serves; known from :meth:`start` on."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        files: BrokerFiles | None = None,
    ) -> None:
        """Describe the broker; nothing is started yet.

        Args:
            folder: Receives ``mosquitto.conf`` and ``broker.log``; made if need be.
            host: An address of this machine; without ``files`` a loopback address (B1).
            port: 0 means a free one, found at the first start and kept from then on.
            files: For TLS with certificates of peers; ``None`` speaks in clear.

        Raises:
            ConfigError: ``host`` is not such an address.
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if address is None or not (address.is_loopback or files is not None):
            kind = "an address of this machine" if files is not None else "a loopback address"
            raise ConfigError([f"broker.host: must be {kind} such as 127.0.0.1, not {host!r}"])
        self._files: Final = files
        self.host: Final = host
        self.folder: Final = folder
        self.log_path: Final = folder / "broker.log"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port; 0 if it was left open and the broker was never started."""
        return self._port

    @property
    def reachable_at(self) -> str:
        """An address at which this machine reaches it: for a wildcard one of loopback."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  compared

    @property
    def pid(self) -> int | None:
        """Process id while one was started and not yet stopped."""
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def warning(self) -> str | None:
        """A sentence for the person who started this, if there is something to know."""
        return AMQTT_WARNING if self.kind == "amqtt" else None

    def start(self) -> None:
        """Start the broker; returns when it takes connections.

        Call it on a thread that lives as long as the broker should: Linux ends
        the child together with the thread that made it (B2).

        Raises:
            BrokerUnavailable: no broker program is installed, the port is taken,
                or the program ended or did not answer within :data:`START_S`.
            RuntimeError: it is running.
        """
        if self.alive:
            raise RuntimeError(f"the broker on port {self._port} is running")
        self.folder.mkdir(parents=True, exist_ok=True)
        attempts = 1 if self._port else PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self._port or _free_port(self.host)
            try:
                self._start_on(port)
            except BrokerUnavailable:
                if attempt == attempts:
                    raise
            else:
                self._port = port
                break
        if self.warning is not None:
            logger.warning("broker.fallback", extra={"kind": self.kind, "meaning": self.warning})

    def stop(self) -> None:
        """End the process and wait for it; harmless if there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def reload(self) -> None:
        """Have it read its files again: from then on they hold, for open connections too.

        Tried with Mosquitto 2.0.11: certificate, list of revocations and access list are all read;
        the session of a peer that was revoked stays open, and nothing passes in it.
        """
        process = self._process  # whoever restarts it does so on another thread
        if process is not None:
            process.send_signal(signal.SIGHUP)  # which does nothing if it has ended

    def restart(self) -> None:
        """End the process if it is still there and start one on the same port.

        Raises:
            BrokerUnavailable: as :meth:`start`.
        """
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_on(self, port: int) -> None:
        _require_free(self.host, port)
        command = self._command(port)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  a program we looked up, no shell
                [sys.executable, "-c", _LAUNCH, str(os.getpid()), *command],
                cwd=ROOT,  # where _LAUNCH finds `shared`
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the parent, which ends this one last
            )
        try:
            self._wait_until_it_answers(port)
        except BaseException:
            self.stop()
            raise

    def _command(self, port: int) -> list[str]:
        mosquitto = find_mosquitto()
        if mosquitto is not None:
            self.kind = "mosquitto"
            return [str(mosquitto), "-c", str(self._write_configuration(port))]
        python = find_amqtt_python()
        if python is not None and self._files is not None:
            raise BrokerUnavailable(
                "a broker that others reach has to be Mosquitto: amqtt keeps no client from "
                "another's messages. Install the package mosquitto (`apt-get install mosquitto`), "
                "or name a broker with --broker"
            )
        if python is not None:
            self.kind = "amqtt"
            script = Path(__file__).with_name("amqtt_main.py")
            return [str(python), str(script), self.host, str(port)]
        raise BrokerUnavailable(
            "no MQTT broker is installed on this machine: run `sh deploy/install-broker.sh` in "
            "the checkout, or install the package mosquitto yourself "
            "(`apt-get install mosquitto`, `brew install mosquitto`)"
        )

    def _write_configuration(self, port: int) -> Path:
        who = _ANYBODY
        if self._files is not None:
            paths = {name: path.absolute() for name, path in asdict(self._files).items()}
            who = _CERTIFIED.format(**paths)
        text = _MOSQUITTO_CONF.format(port=port, host=self.host, who=who)
        if os.geteuid() == 0:
            # Started by root, mosquitto would become another user; a change of user also
            # makes Linux forget that the process is to end with its parent (prctl(2)).
            text += "user root\n"
        path = (self.folder / "mosquitto.conf").absolute()
        path.write_text(text, encoding="utf-8")
        return path

    def _wait_until_it_answers(self, port: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                raise BrokerUnavailable(
                    f"{self.kind} ended at once (status {status}): {self._last_words()}"
                )
            try:
                socket.create_connection((self.reachable_at, port), timeout=START_S).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise BrokerUnavailable(
            f"{self.kind} did not answer on port {port} within {START_S:g} s: see {self.log_path}"
        )

    def _last_words(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"{lines[-1]} (more in {self.log_path})" if lines else "it left no message"


def _listening_socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # As brokers do it: connections of a predecessor that linger in TIME_WAIT are no obstacle.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener


def _free_port(host: str) -> int:
    with _listening_socket(host) as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


def _require_free(host: str, port: int) -> None:
    """Refuse a port on which somebody else would answer in the broker's place."""
    with _listening_socket(host) as listener:
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as err:
            raise BrokerUnavailable(
                f"cannot listen on {host}:{port} ({err}): stop what uses it or choose another port"
            ) from err
