"""The promise of deploy/local/services: nothing is left behind, however a program ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from local.services import Child, ServiceError, Valkey, accepts_connections, free_ports

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
LINUX = sys.platform == "linux"
DEADLINE_S = 20.0

PARENT = """
import sys, time
from local.services import EmbeddedKafka, Valkey
with Valkey() as valkey, EmbeddedKafka() as kafka:
    print(valkey.pid, kafka.pid, valkey.port, kafka.port, valkey.folder, flush=True)
    time.sleep(600)
"""


def ended_within(descriptor: int, timeout_s: float) -> bool:
    """Tell whether the process of a pidfd ended in time; blocks without polling."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def started_parent(temporary: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """Start an interpreter with two services; return it and the line it prints, in words."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "PYTHONPATH": str(DEPLOY), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if parent.stdout is None:
        raise AssertionError("stdout was asked for")
    return parent, parent.stdout.readline().split()


@pytest.mark.integration
@pytest.mark.skipif(not LINUX, reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_service_outlives_a_parent_that_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    parent, (*pids_and_ports, folder) = started_parent(tmp_path)
    first, second, *ports = map(int, pids_and_ports)
    descriptors = [os.pidfd_open(pid) for pid in (first, second)]

    with parent:
        parent.send_signal(how)
        parent.wait(DEADLINE_S)

    for descriptor in descriptors:
        assert ended_within(descriptor, DEADLINE_S)
        os.close(descriptor)
    assert not any(accepts_connections(port) for port in ports)
    assert Path(folder).exists() == (how != signal.SIGINT), "an orderly end removes the folder"


@pytest.mark.integration
def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    children: list[Child] = []
    thread = threading.Thread(
        target=lambda: children.append(Child(["sleep", "600"], tmp_path / "log"))
    )
    thread.start()
    thread.join()

    assert children[0].wait(0.2) is None
    children[0].kill()
    assert children[0].exit_code == -signal.SIGKILL


@pytest.mark.integration
@pytest.mark.skipif(not LINUX, reason="uses a pidfd")
def test_killing_a_child_kills_what_it_started(tmp_path: Path) -> None:
    child = Child(["sh", "-c", "sleep 600 & echo $!; wait"], tmp_path / "log")
    while not child.log_tail().strip().isdigit():
        assert child.wait(0.02) is None
    descriptor = os.pidfd_open(int(child.log_tail()))

    child.kill()

    assert ended_within(descriptor, DEADLINE_S)
    os.close(descriptor)


@pytest.mark.integration
def test_a_child_that_ignores_sigterm_is_killed_after_the_deadline(tmp_path: Path) -> None:
    child = Child(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], tmp_path / "l"
    )
    while "ready" not in child.log_tail():
        assert child.wait(0.02) is None

    child.stop(timeout_s=0.3)

    assert child.exit_code == -signal.SIGKILL


@pytest.mark.integration
def test_a_command_that_does_not_exist_is_named_in_the_log(tmp_path: Path) -> None:
    child = Child(["/no/such/program"], tmp_path / "log")
    assert child.wait(DEADLINE_S) == 1
    assert child.log_tail() == "cannot run /no/such/program: No such file or directory"


@pytest.mark.integration
def test_closing_a_service_frees_its_port_and_removes_its_folder() -> None:
    with Valkey() as server:
        pid, port, folder = server.pid, server.port, server.folder
        assert accepts_connections(port)
        assert folder.is_dir()

    assert not accepts_connections(port)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.integration
def test_a_given_folder_is_kept(tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        server.client().set("kept", 1)
    with Valkey(tmp_path) as server:
        assert server.client().get("kept") == b"1"


@pytest.mark.integration
def test_a_port_taken_meanwhile_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with Valkey() as owner:
        taken = owner.port
        offers = iter([[taken], [taken], free_ports(1)])
        monkeypatch.setattr("local.services.service.free_ports", lambda *_a, **_k: next(offers))
        with Valkey() as server:
            assert server.port != taken
            assert owner.client().info("server")["process_id"] == owner.pid


@pytest.mark.integration
def test_a_service_that_cannot_start_says_why() -> None:
    with pytest.raises(ServiceError, match=r"(?s)exit code 1 .*end of .*valkey\.log:.*nonsense"):
        Valkey(settings={"maxmemory-policy": "nonsense"}).__enter__()


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_ports_are_distinct_and_below_the_ephemeral_range() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < lowest
