"""`keyfold-worker --processes N`: the small parent of N workers of one group, for N cores.

Owns the children: each is the ordinary worker, a program of its own (no fork of a loaded
interpreter) in a group of its own (Ctrl-C at a terminal reaches the parent alone, which tells them
once) that the kernel kills when the parent dies in any way. Owns their output as well: a line says
whose it is, and what all of them end with is said once. processes_plan.py decides; this carries
out. It imports neither Faust nor ONNX Runtime and has one thread: the kernel's promise is to the
thread that started a child. Called by worker/cli.py.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from keyfold.worker.config import Config, SettingsError
from keyfold.worker.processes_plan import EX_CRASH, EX_USAGE, Order, Plan, What

log = logging.getLogger(__name__)

PER_CORE = 4  # workers at most: one per core is enough, some wait for Kafka or Redis meanwhile
LEAVE_S = 5.0  # of a worker's own stop behind its drain: liveness/last_words.py
GRACE_S = 3.0  # behind that, before the rest is killed
PROGRAM = ("-P", "-m", "keyfold.worker.cli")  # -P: as the console script, without this folder
LAST_LINE = "keyfold-worker: "  # how the line begins that a failed worker ends with
CHUNK = 1 << 16  # bytes of output read at once; a line that is longer is cut
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(config: Config, words: Sequence[str]) -> int:
    """Run config.worker.processes workers with these command-line words; return the exit status.

    Raises SettingsError: there are too many.
    """
    worker = config.worker
    expect_room(worker.processes, cores())
    command = [sys.executable, *PROGRAM, *words]
    # In a program of its own: numpy would stay in this one, and its threads.
    if subprocess.run([*command, "--look"], check=False).returncode == EX_USAGE:
        return EX_USAGE
    last, port = worker.processes - 1, worker.web_port
    pages = f", pages on ports {port} to {port + last}" if port else ""
    log.info(
        "worker.processes = %d: starting workers 0 to %d of group %r%s",
        worker.processes, last, config.kafka.group, pages,
    )  # fmt: skip
    plan = Plan(worker.processes, worker.drain_s + LEAVE_S + GRACE_S)
    with _signals() as wake:
        return Parent(plan, command, wake).run()


def expect_room(workers: int, on_cores: int) -> None:
    """Refuse more workers than do any good. Raises SettingsError."""
    most = PER_CORE * on_cores
    if workers > most:
        raise SettingsError(
            f"worker.processes: expected at most {most}, {PER_CORE} for each core of this machine "
            f"({on_cores}), got {workers}: one keeps a core busy, and each holds its own memory"
        )


def cores() -> int:
    """Return how many cores this program may use."""
    # Not on macOS.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Parent:
    """The running workers, and the loop that listens to them."""

    def __init__(self, plan: Plan, command: Sequence[str], wake: int) -> None:
        """Prepare it; `wake`: readable, a byte for each signal, as signal.set_wakeup_fd has it."""
        self._plan, self._command, self._wake = plan, command, wake
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # by the worker's number
        self._output: dict[int, Output] = {}  # of each of them
        self._last_lines: list[str] = []  # of workers that need a person, each once
        self._ready = selectors.DefaultSelector()
        self._ready.register(wake, selectors.EVENT_READ)

    def run(self) -> int:
        """Start the workers, and return when all have ended for good."""
        try:
            while True:
                self._carry_out(self._plan.due(time.monotonic()))
                self._reap()
                if self._plan.over:
                    break
                self._listen(self._plan.wait_s(time.monotonic()))
        finally:
            for child in self._children.values():  # none, unless this loop failed
                with child:  # which waits for it
                    child.kill()
            self._ready.close()
        # Said last, as a single worker says it.
        show(self._last_lines)
        return self._plan.status

    def _listen(self, limit_s: float | None) -> None:
        for key, _ in self._ready.select(limit_s):
            if key.fd == self._wake:
                if {signal.SIGTERM, signal.SIGINT} & set(os.read(self._wake, CHUNK)):
                    log.info("stopping %d workers", len(self._children))
                    self._carry_out(self._plan.stop(time.monotonic()))
            else:
                self._hear(key.data)

    def _hear(self, number: int) -> bool:
        """Show what a worker wrote; return whether there may be more."""
        child = self._children[number]
        assert child.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            written = os.read(child.stdout.fileno(), CHUNK)
        except BlockingIOError:
            return False
        if not written:
            with suppress(KeyError):
                self._ready.unregister(child.stdout)
            return False
        show(self._output[number].lines(written))
        return True

    def _reap(self) -> None:
        for number, child in list(self._children.items()):
            status = child.poll()
            if status is None:
                continue
            while self._hear(number):
                pass
            assert child.stdout is not None  # noqa: S101
            with suppress(KeyError):
                self._ready.unregister(child.stdout)
            child.stdout.close()
            del self._children[number]
            output = self._output.pop(number)
            show(output.rest())
            orders = self._plan.ended(number, status, time.monotonic())
            self._farewell(output, status)
            self._carry_out(orders)

    def _farewell(self, output: Output, status: int) -> None:
        # Those that say what was said already may have been told to stop while they did.
        new = [line for line in output.held if line not in self._last_lines]
        # Held only where all end for it: the others of one that was started again serve on, maybe
        # for weeks, and a person is to read meanwhile what is wrong with this one.
        if status == self._plan.status == EX_USAGE:
            self._last_lines += new
        else:
            show(output.prefix + line for line in new)

    def _carry_out(self, orders: Iterable[Order]) -> None:
        for order in orders:
            child = self._children.get(order.number)
            if order.what is What.START:
                self._start(order.number)
            elif order.what is What.STOP and child is not None:
                child.send_signal(signal.SIGTERM)
            elif order.what is What.KILL and child is not None:
                log.error("worker %d has not stopped in time: killed", order.number)
                child.kill()
            elif order.words:
                level = logging.INFO if order.what is What.TELL else logging.WARNING
                log.log(level, "worker %d %s", order.number, order.words)

    def _start(self, number: int) -> None:
        try:
            child = subprocess.Popen(
                [*self._command, f"--number={number}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                process_group=0, preexec_fn=partial(_die_with, os.getpid(), _prctl()),
            )  # fmt: skip
        except OSError as error:  # no memory, too many programs: later there may be room
            log.error("worker %d could not be started: %s", number, error.strerror)
            self._carry_out(self._plan.ended(number, EX_CRASH, time.monotonic()))
            return
        assert child.stdout is not None  # noqa: S101
        os.set_blocking(child.stdout.fileno(), False)
        self._children[number], self._output[number] = child, Output(f"[{number}] ")
        self._ready.register(child.stdout, selectors.EVENT_READ, number)


class Output:
    """PURE: what one worker writes, line by line; its last words are held until its end is known.

    All of them may end for the same reason (a topic that is missing), which is said once.
    """

    def __init__(self, prefix: str) -> None:
        """Begin with nothing written; `prefix` is put before each line."""
        self.prefix = prefix
        self.held: list[str] = []  # last words, without the prefix
        self._begun = b""  # of a line

    def lines(self, written: bytes) -> list[str]:
        """Take what was written and return the lines that are to be shown now."""
        *whole, self._begun = (self._begun + written).split(b"\n")
        if len(self._begun) >= CHUNK:
            whole, self._begun = [*whole, self._begun], b""
        shown = []
        for line in whole:
            text = line.decode(errors="replace")
            if text.startswith(LAST_LINE):
                self.held.append(text)
            else:
                shown.append(self.prefix + text)
        return shown

    def rest(self) -> list[str]:
        """Return what is left when nothing more can come."""
        return self.lines(b"\n") if self._begun else []


def show(lines: Iterable[str]) -> None:
    """Write lines to stderr; whoever does not read them any more stops no worker."""
    text = "".join(f"{line}\n" for line in lines)
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


@contextmanager
def _signals() -> Iterator[int]:
    """Hear SIGTERM, SIGINT and SIGCHLD as bytes of a descriptor, which is what this yields."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    heard = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    signal.set_wakeup_fd(writer)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _prctl() -> ctypes._NamedFuncPointer | None:
    # Looked up before the fork. Elsewhere than on Linux only an orderly end stops the workers.
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with(parent: int, prctl: ctypes._NamedFuncPointer | None) -> None:
    """Called in a child before it becomes a worker: be killed when the parent dies."""
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before this was asked
        os._exit(EX_CRASH)
