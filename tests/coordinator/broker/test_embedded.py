"""EmbeddedBroker: a broker that is ours, on loopback, and gone when we are."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.broker import embedded
from coordinator.broker.embedded import EmbeddedBroker, find_amqtt_python, find_mosquitto
from shared.errors import BrokerUnavailable, ConfigError
from shared.transport.mqtt import MqttTransport
from tests.support.brokers import eventually, mosquitto_or_skip

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.broker), "amqtt"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two programs in turn; amqtt only where its environment was made."""
    if request.param == "mosquitto":
        mosquitto_or_skip()
    else:
        if find_amqtt_python() is None:
            pytest.skip("no .broker environment: only made where mosquitto cannot be had")
        monkeypatch.setattr(embedded, "find_mosquitto", lambda: None)
    return str(request.param)


@pytest.fixture
def broker(kind: str, tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.kind == kind
        yield broker


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")")[-1].split()[0] != "Z"
        )
    except FileNotFoundError:
        return False


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError:
        return False
    return True


def exchange(broker: EmbeddedBroker, payload: bytes = b"hello") -> bool:
    """Whether a message comes back through the broker."""
    got: list[bytes] = []
    end = MqttTransport(broker.host, broker.port, "probe")
    end.open(lambda _, body: got.append(body), ["probe"])
    end.publish("probe", payload)
    arrived = eventually(lambda: got == [payload])
    end.close()
    return arrived


def test_it_carries_messages_as_soon_as_it_is_started(broker: EmbeddedBroker) -> None:
    assert broker.alive
    assert exchange(broker)
    assert exchange(broker, os.urandom(256 * 1024))


def test_it_is_gone_after_stop(broker: EmbeddedBroker) -> None:
    pid = broker.pid
    assert pid is not None
    broker.stop()
    assert not broker.alive
    assert broker.pid is None
    assert not is_running(pid)
    assert not accepts(broker.host, broker.port)
    broker.stop()


def test_it_listens_on_loopback_only(broker: EmbeddedBroker) -> None:
    # The kernel's tables of sockets: local address and port in hexadecimal, state 0A is
    # listening, 0100007F is 127.0.0.1.
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    port = f":{broker.port:04X}"
    assert [each for each in listening if each.endswith(port)] == [f"0100007F{port}"]


def test_it_can_be_restarted_on_its_port_also_after_being_killed(broker: EmbeddedBroker) -> None:
    port, pid = broker.port, broker.pid
    assert pid is not None
    client = MqttTransport(broker.host, port, "bystander")
    client.open(lambda _topic, _payload: None, [])
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not broker.alive)
    broker.restart()
    assert (broker.alive, broker.port) == (True, port)
    assert broker.pid != pid
    assert exchange(broker)
    client.close()


def test_nothing_is_remembered_across_a_restart(broker: EmbeddedBroker) -> None:
    client = Client(CallbackAPIVersion.VERSION2, "keeper")
    client.connect(broker.host, broker.port)
    client.loop_start()
    client.publish("kept", b"?", qos=1, retain=True).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()
    broker.restart()
    got: list[str] = []
    end = MqttTransport(broker.host, broker.port, "reader")
    end.open(lambda topic, _: got.append(topic), ["kept", "now"])
    end.publish("now", b"")
    assert eventually(lambda: "now" in got)
    end.close()
    assert got == ["now"]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_dies_when_its_parent_is_killed(kind: str, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from coordinator.broker import embedded\n"
        f"if {kind == 'amqtt'}: embedded.find_mosquitto = lambda: None\n"
        "broker = embedded.EmbeddedBroker(Path(sys.argv[1])); broker.start()\n"
        "print(broker.pid, broker.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert accepts("127.0.0.1", port)
        parent.kill()
    died = eventually(lambda: not is_running(pid))
    if not died:
        os.kill(pid, signal.SIGKILL)  # a failing test leaves nothing behind either
    assert died


@pytest.mark.broker
def test_many_messages_for_a_slow_subscriber_are_all_kept(tmp_path: Path) -> None:
    mosquitto_or_skip()
    with EmbeddedBroker(tmp_path) as broker:
        go, got = threading.Event(), []

        def slow(_topic: str, payload: bytes) -> None:
            go.wait(120)
            got.append(payload)

        reader = MqttTransport(broker.host, broker.port, "reader")
        sender = MqttTransport(broker.host, broker.port, "sender")
        reader.open(slow, ["t"])
        sender.open(lambda _topic, _payload: None, [])
        for number in range(3000):
            assert sender.publish("t", number.to_bytes(2))
        sender.close()  # all acknowledged by the broker
        go.set()
        assert eventually(lambda: len(got) == 3000)
        reader.close()


@pytest.mark.broker
def test_a_port_in_use_is_refused_and_its_owner_left_alone(tmp_path: Path) -> None:
    mosquitto_or_skip()
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*choose another port"):
            EmbeddedBroker(tmp_path, port=port).start()
        assert accepts("127.0.0.1", port)


@pytest.mark.broker
def test_a_running_broker_is_not_started_twice(tmp_path: Path) -> None:
    mosquitto_or_skip()
    with EmbeddedBroker(tmp_path) as broker:
        with pytest.raises(RuntimeError, match="running"):
            broker.start()
        assert exchange(broker)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "localhost", ""])  # noqa: S104  refused
def test_an_address_others_can_reach_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        EmbeddedBroker(tmp_path, host=host)


def program(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_program_that_ends_at_once_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = program(tmp_path, "echo 'bad hair day' >&2; exit 3")
    monkeypatch.setattr(embedded, "find_mosquitto", lambda: fake)
    broker = EmbeddedBroker(tmp_path / "run")
    with pytest.raises(BrokerUnavailable, match=r"status 3\): bad hair day"):
        broker.start()
    assert (broker.alive, broker.pid) == (False, None)


def test_a_program_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(embedded, "find_mosquitto", lambda: fake)
    monkeypatch.setattr(embedded, "START_S", 5.0)
    with pytest.raises(BrokerUnavailable, match="did not answer"):
        EmbeddedBroker(tmp_path / "run", port=_unused_port()).start()
    assert not is_running(int((tmp_path / "pid").read_text(encoding="utf-8")))


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_without_any_broker_program_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_mosquitto", lambda: None)
    monkeypatch.setattr(embedded, "find_amqtt_python", lambda: None)
    with pytest.raises(BrokerUnavailable, match="`sh deploy/install-broker"):
        EmbeddedBroker(tmp_path).start()


def test_the_fallback_says_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The standard library stands in for amqtt's environment: any program that answers will do.
    server = (
        "import socket, sys, time; s = socket.create_server((sys.argv[1], int(sys.argv[2])));"
        " time.sleep(60)"
    )
    fake = program(tmp_path, f'exec {sys.executable} -c "{server}" "$2" "$3"')
    monkeypatch.setattr(embedded, "find_mosquitto", lambda: None)
    monkeypatch.setenv("LLMOS_BROKER_PYTHON", str(fake))
    with caplog.at_level(logging.WARNING), EmbeddedBroker(tmp_path / "run") as broker:
        assert broker.kind == "amqtt"
        assert broker.warning is not None
        assert "this machine alone" in broker.warning
    assert [record.message for record in caplog.records] == ["broker.fallback"]


def test_a_misspelt_interpreter_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="LLMOS_BROKER_PYTHON names /nowhere"):
        find_amqtt_python({"LLMOS_BROKER_PYTHON": "/nowhere"})


def test_mosquitto_is_found_where_packages_put_it_though_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "").rename(tmp_path / "mosquitto")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "_SBIN", ("/nowhere", str(tmp_path)))
    assert find_mosquitto() == tmp_path / "mosquitto"
