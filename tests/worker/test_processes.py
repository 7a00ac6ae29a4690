"""`keyfold-worker --processes N` on a real Kafka: N workers of one group under one small parent."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.worker import processes
from keyfold.worker.cli import main
from keyfold.worker.config import SettingsError, read_config
from keyfold.worker.liveness import last_words
from keyfold.worker.processes import Output, Parent, show
from keyfold.worker.processes_member import settings_of
from keyfold.worker.processes_plan import Order, Plan
from local.services import Child, free_ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
LEAST = ["--set=kafka.brokers=127.0.0.1:1", "--set=kafka.input=in", "--set=kafka.output=out",
         "--set=worker.bundle=nowhere"]  # fmt: skip

# Runs a worker as a shell would: at a terminal, in its foreground; SIGUSR1 types Ctrl-C.
IN_A_TERMINAL = """
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "keyfold.worker.cli", *sys.argv[1:]])
signal.signal(signal.SIGUSR1, lambda *_: os.write(terminal, b"\\x03"))
while True:
    try:
        text = os.read(terminal, 65536)
    except OSError:
        break
    if not text:
        break
    os.write(1, text)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def workers_of(parent: int) -> list[int]:
    """Return the pids of a parent's children, oldest first."""
    with suppress(FileNotFoundError):
        return [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return []


def alive(pid: int) -> bool:
    """Tell whether a program runs (one that nobody has reaped does not)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def numbered(parent: int) -> dict[int, int]:
    """Return the pids of a parent's workers by their number, as `ps` shows it."""
    found = {}
    for pid in workers_of(parent):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            number = re.search(rb"--number=(\d+)", words)
            if number is not None:  # else it is not yet what it will be
                found[int(number[1])] = pid
    return found


def memory_mib(pid: int) -> float:
    """Return a program's resident memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def said(child: Child, *words: str) -> Callable[[], bool]:
    """Return a condition: each of these regular expressions is in what was written."""
    return lambda: all(re.search(word, child.log.read_text()) for word in words)


@contextmanager
def several(serving: Serving, **settings: object) -> Iterator[Child]:
    """Run two workers that both have partitions; nothing of them outlives the test."""
    parent = serving.worker(**{"worker__processes": 2, **settings})
    pids: set[int] = set()
    try:
        both = said(parent, r"\[0\] .*acquired at", r"\[1\] .*acquired at")
        serving.wait_until(both, "both to get partitions", [parent])
        pids.update(workers_of(parent.pid))
        yield parent
    finally:
        pids.update(workers_of(parent.pid))
        parent.kill()
        left = [pid for pid in pids if alive(pid)]
        if left:  # a failed test is not to leave them either
            with suppress(AssertionError):
                serving.wait_until(lambda: not any(map(alive, left)), "the kernel", limit_s=5)
        for pid in filter(alive, left):
            os.kill(pid, signal.SIGKILL)


# -- on a real Kafka -------------------------------------------------------------------------------


def test_two_share_the_partitions_and_drain(serving: Serving) -> None:
    port = free_ports(1)[0]
    events = make_events(20_000, 300, skew="zipf")
    serving.send(events[:10_000])
    with several(serving, worker__web_port=port) as parent:
        serving.send(events[10_000:])
        serving.wait_saved([parent])
        shares = [set(serving.get(port + i, "/health")[1]["partitions"]) for i in range(2)]
        assert shares[0] | shares[1] == {"0", "1", "2", "3"}
        assert len(shares[0]) == len(shares[1]) == 2
        maps = Path(f"/proc/{parent.pid}/maps").read_text()
        assert "onnxruntime" not in maps
        assert "librdkafka" not in maps
        assert len(os.listdir(f"/proc/{parent.pid}/task")) == 1  # noqa: PTH208
        assert memory_mib(parent.pid) < 40
        parent.stop()
    lines = parent.log.read_text().splitlines()
    assert parent.exit_code == 0, parent.log_tail()
    assert lines[0].endswith(
        f"worker.processes = 2: starting workers 0 to 1 of group '{serving.group}', pages on "
        f"ports {port} to {port + 1}"
    )
    for number in range(2):
        own = [line for line in lines if line.startswith(f"[{number}] ")]
        assert sum("stopped, drained: all that was taken" in line for line in own) == 1
    serving.verify_clean(len(events))


def test_the_flag_is_the_setting(serving: Serving) -> None:
    serving.program = (*serving.program, "--processes", "2")
    with several(serving, worker__processes=1) as parent:  # which the flag overrides
        assert numbered(parent.pid).keys() == {0, 1}
        parent.stop()
    assert parent.exit_code == 0, parent.log_tail()


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
def test_one_that_is_killed_comes_back_and_nothing_is_lost(serving: Serving, outputs: str) -> None:
    events = make_events(40_000, 500, skew="zipf")
    with several(serving, worker__max_events=200, worker__outputs=outputs) as parent:
        first = numbered(parent.pid)
        serving.send(events)
        serving.wait_until(lambda: sum(serving.watermarks().values()) > 1000, "saves", [parent])
        os.kill(first[1], signal.SIGKILL)
        again = said(parent, "worker 1 was ended by SIGKILL; it is started again in 1 s")
        serving.wait_until(again, "the parent to see it", [parent])
        serving.wait_until(lambda: len(numbered(parent.pid)) == 2, "a new one", [parent])
        second = numbered(parent.pid)
        assert second[0] == first[0]  # the other went on
        assert second[1] != first[1]
        back = said(parent, r"(?s)started again.*\[1\] .*acquired at")
        serving.wait_until(back, "it to get partitions", [parent])
        serving.wait_saved([parent])
        parent.stop()
    assert parent.exit_code == 0, parent.log_tail()
    serving.verify_clean(len(events))


def test_a_killed_parent_leaves_nothing_behind(serving: Serving) -> None:
    events = make_events(20_000, 300)
    with several(serving, worker__max_events=200) as parent:
        pids = workers_of(parent.pid)
        assert len(pids) == 2
        serving.send(events)
        serving.wait_until(lambda: sum(serving.watermarks().values()) > 1000, "saves", [parent])
        os.kill(parent.pid, signal.SIGKILL)
        serving.wait_until(lambda: not any(map(alive, pids)), "the kernel", limit_s=10)
    with several(serving) as parent:
        serving.wait_saved([parent])
        parent.stop()
    serving.verify_clean(len(events))


def test_ctrl_c_at_a_terminal_drains_each_once(serving: Serving) -> None:
    serving.program = ("-c", IN_A_TERMINAL)
    with several(serving) as terminal:
        (parent,) = workers_of(terminal.pid)
        pids = workers_of(parent)
        assert len(pids) == 2
        # Else they hear Ctrl-C and the parent's SIGTERM, at times before they listen to either.
        assert all(os.getpgid(pid) == pid for pid in pids)
        terminal.signal(signal.SIGUSR1)
        assert terminal.wait(30) == 0, terminal.log_tail()
        assert not any(map(alive, [parent, *pids]))
    text = terminal.log.read_text()
    assert text.count("stopping 2 workers") == 1
    assert text.count("stopped, drained: all that was taken") == 2
    assert "Traceback" not in text


def test_ctrl_c_while_they_begin_is_a_stop_like_any(serving: Serving) -> None:
    serving.program = ("-c", IN_A_TERMINAL)
    terminal = serving.worker(worker__processes=2)
    try:
        serving.wait_until(
            lambda: sum(len(numbered(pid)) for pid in workers_of(terminal.pid)) == 2,
            "both to load their libraries", [terminal],
        )  # fmt: skip
        terminal.signal(signal.SIGUSR1)
        assert terminal.wait(30) == 0, terminal.log_tail()
        assert "Traceback" not in terminal.log.read_text()
    finally:
        terminal.kill()


def test_one_that_does_not_stop_is_killed(serving: Serving) -> None:
    with several(serving, worker__drain_s=0) as parent:
        pids = numbered(parent.pid)
        os.kill(pids[0], signal.SIGSTOP)
        parent.signal(signal.SIGTERM)
        assert parent.wait(20) == 70, parent.log_tail()
        assert "worker 0 has not stopped in time: killed" in parent.log.read_text()
        assert "worker 0 was ended by SIGKILL while it was to stop" in parent.log.read_text()
        assert not any(map(alive, pids.values()))


def test_what_a_person_must_set_right_is_said_once(serving: Serving) -> None:
    parent = serving.worker(worker__processes=3, kafka__output="nowhere")
    assert parent.wait(60) == 2, parent.log_tail()
    text = parent.log.read_text()
    line = (
        "keyfold-worker: topic 'nowhere': expected it to exist, got none; create it "
        "(the worker never creates topics)"
    )
    assert text.count(line) == 1
    assert text.splitlines()[-1] == line
    assert "cannot serve before something is set right (status 2)" in text


def test_a_port_that_is_taken_ends_all(serving: Serving) -> None:
    port = free_ports(1)[0]
    with several(serving, worker__web_port=port) as parent:
        other = serving.worker(worker__processes=2, worker__web_port=port - 1)
        assert other.wait(60) == 2, other.log_tail()
        assert other.log.read_text().splitlines()[-1] == (
            f"keyfold-worker: worker.web_port: expected a free port on 127.0.0.1, got {port}: "
            "Address already in use"
        )
        parent.stop()


@pytest.mark.parametrize("partitions", [1])
def test_more_workers_than_partitions_is_said_in_one_line(
    serving: Serving, partitions: int
) -> None:
    parent = serving.worker(worker__processes=2)
    try:
        serving.wait_until(said(parent, "acquired at"), "one to get it", [parent])
        parent.stop()
    finally:
        parent.kill()
    found = [line for line in parent.log.read_text().splitlines() if "partitions only" in line]
    assert len(found) == 1, parent.log_tail()
    assert re.fullmatch(
        r"\[0\] .* WARNING keyfold\.worker\.processes_member: worker\.processes = 2: topic "
        rf"'{serving.input}' has 1 partitions only: 1 of the workers will have none",
        found[0],
    )


# -- without services ------------------------------------------------------------------------------


def test_max_events_is_of_one_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAST, "--processes", "2", "--max-events", "5"]) == 2
    assert capsys.readouterr().err == (
        "keyfold-worker: --max-events: counts the records of one worker, but worker.processes is "
        "2; add --processes 1\n"
    )


def test_more_workers_than_do_any_good_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAST, "--processes", "10000"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"keyfold-worker: worker\.processes: expected at most \d+, 4 for each core of this machine "
        r"\(\d+\), got 10000: one keeps a core busy, and each holds its own memory\n", said,
    ), said  # fmt: skip
    processes.expect_room(8, 2)
    with pytest.raises(SettingsError, match=r"at most 8, 4 for each core .*, got 9"):
        processes.expect_room(9, 2)


def test_settings_that_do_not_fit_the_bundle_are_told_before_any_worker_is_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert main([*LEAST, "--processes", "2"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("keyfold-worker: nowhere: ")
    assert said.count("\n") == 1
    bundle = make_tiny_bundle(tmp_path)
    emit = ["--set=emit.what=when", "--set=emit.field=pressure", "--set=emit.above=1"]
    assert main([*LEAST, f"--set=worker.bundle={bundle.path}", *emit, "--processes", "2"]) == 2
    assert "keyfold-worker: emit.field: " in capfd.readouterr().err
    assert "starting workers" not in caplog.text


def test_a_dry_run_is_one_program_whatever_the_settings_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*LEAST, "--processes", "2", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("keyfold-worker: nowhere: ")


@pytest.mark.parametrize(("settings", "words"), [
    (["worker.processes=0"], "worker.processes: expected at least 1, got 0"),
    (["worker.web_port=65536"], "worker.web_port: expected at most 65535, got 65536"),
    (["worker.processes=4", "worker.web_port=65533"],
     "worker.web_port: expected at most 65532, for 4 workers, got 65533"),
])  # fmt: skip
def test_a_number_or_port_that_cannot_be_is_refused(
    settings: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LEAST, *(f"--set={setting}" for setting in settings)]) == 2
    assert capsys.readouterr().err == f"keyfold-worker: settings: {words}\n"


def test_each_has_a_port_of_its_own_where_there_is_one() -> None:
    least = [flag.removeprefix("--set=") for flag in LEAST]
    top = read_config(None, [*least, "worker.processes=3", "worker.web_port=65533"], {})
    assert settings_of(top, 2).worker.web_port == 65535
    off = read_config(None, [*least, "worker.processes=3"], {})
    assert settings_of(off, 2).worker.web_port == 0


def test_the_parent_loads_neither_faust_nor_onnx_runtime() -> None:
    code = (
        "import sys, keyfold.worker.cli, keyfold.worker.processes\n"
        "print({'faust', 'onnxruntime', 'numpy', 'confluent_kafka', 'aiokafka', 'redis'}"
        " & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_the_parent_waits_longer_than_a_worker_stops() -> None:
    assert processes.LEAVE_S == last_words.LEAVE_S


def parent_of(plan: Plan, *command: str, heard: bytes = b"") -> Parent:
    """Return a parent of any program, which has heard these signals."""
    wake, writer = os.pipe()
    os.set_blocking(wake, False)
    os.write(writer, heard)
    os.close(writer)
    return Parent(plan, command, wake)


def test_one_that_cannot_be_started_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = parent_of(Plan(1, 1.0), "/nowhere/python", heard=bytes([signal.SIGTERM]))
    with caplog.at_level("INFO"):
        assert parent.run() == 0
    assert caplog.messages == [
        "worker 0 could not be started: No such file or directory",
        "worker 0 ended with status 70; it is started again in 1 s",
        "stopping 0 workers",
    ]


def test_what_a_worker_that_was_started_again_needs_is_said_at_once_and_not_when_all_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    crashed = tmp_path / "crashed"
    code = (
        f"import os, pathlib; crashed = pathlib.Path({str(crashed)!r})\n"
        "again = crashed.exists(); crashed.touch()\n"
        "print('keyfold-worker:', 'no topic' if again else 'crashed', flush=True)\n"
        "os._exit(2 if again else 70)"
    )
    shown: list[str] = []

    class Asked(Plan):
        def ended(self, number: int, status: int, now_s: float) -> list[Order]:
            statuses.append(status)
            return super().ended(number, status, now_s)

        def wait_s(self, now_s: float) -> float | None:
            if statuses == [70, 2] and not shown:  # it would be started again
                assert not self.over
                shown.append(capsys.readouterr().err)
                self.stop(now_s)
                return 0.0
            return super().wait_s(now_s)

    statuses: list[int] = []
    parent = parent_of(Asked(1, 5.0), sys.executable, "-c", code)
    assert parent.run() == 0
    assert shown == ["[0] keyfold-worker: crashed\n[0] keyfold-worker: no topic\n"]
    assert not capsys.readouterr().err


def test_a_parent_that_fails_leaves_nothing_behind() -> None:
    class Failing(Plan):
        def wait_s(self, now_s: float) -> float | None:
            pids.extend(workers_of(os.getpid()))
            raise RuntimeError("a defect")

    pids: list[int] = []
    before = set(workers_of(os.getpid()))
    parent = parent_of(Failing(1, 1.0), sys.executable, "-c", "import time; time.sleep(60)")
    begun_s = time.monotonic()
    with pytest.raises(RuntimeError, match="a defect"):
        parent.run()
    assert time.monotonic() - begun_s < 30  # it was not waited for
    begun = set(pids) - before
    assert len(begun) == 1
    assert not any(map(alive, begun))


def test_a_parent_that_died_first_is_noticed() -> None:
    code = "from keyfold.worker import processes as p; p._die_with(1 << 30, p._prctl())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 70


def test_lines_are_shown_whole_and_last_words_are_held() -> None:
    output = Output("[1] ")
    assert output.lines(b"a\nb") == ["[1] a"]
    assert output.lines(b"c\nkeyfold-worker: no \xff topic\nd") == ["[1] bc"]
    assert output.rest() == ["[1] d"]
    assert output.rest() == []
    assert output.held == ["keyfold-worker: no \ufffd topic"]


def test_a_line_without_end_is_cut() -> None:
    output = Output("")
    assert output.lines(b"x" * processes.CHUNK) == ["x" * processes.CHUNK]
    assert output.lines(b"y\n") == ["y"]


def test_nobody_reads_the_log_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        show(["a line"])
        monkeypatch.undo()
