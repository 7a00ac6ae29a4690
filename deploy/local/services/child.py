"""Child programs that never outlive us, loopback ports, and the log a failure is explained from.

Owns spawning, signalling and reaping. Knows nothing of Kafka or Valkey. Used by service.py and
by the demo for its workers. On Linux a child gets SIGKILL when this interpreter dies in any way;
elsewhere only an orderly end (Ctrl-C and exceptions included) stops it.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 15_000  # above the well-known service ports
TAIL_LINES = 25
TAIL_BYTES = 64 * 1024

_BOUND_EXEC = Path(__file__).with_name("bound_exec.py")
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class ServiceError(RuntimeError):
    """A local service could not do what was asked; the message quotes its log."""


class Child:
    """One running program in a session of its own, its output appended to a log file."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start `command`; `env` is added to this environment. Output goes to `log` only."""
        self.command = list(command)
        self.log = log
        self._log_start_bytes = log.stat().st_size if log.exists() else 0
        bound = [sys.executable, "-I", "-S", str(_BOUND_EXEC), str(os.getpid()), *command]
        with log.open("ab") as output:
            # Linux sends the parent-death signal when the spawning *thread* ends, so that
            # every child is spawned by one thread that lives as long as the interpreter.
            self._popen = (
                _spawner()
                .submit(
                    subprocess.Popen[bytes],
                    bound,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,  # Ctrl-C at the terminal reaches us, not the child
                )
                .result()
            )

    @property
    def pid(self) -> int:
        """Return the program's process id, which is also its process group."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit status (negative: the signal), or None while it runs."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit status, or None when it still runs after `timeout_s`."""
        if self._popen.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
                # At once: later the number may belong to somebody else's group.
                self._kill_group()
        return self._popen.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the program alone; one that has ended is left alone."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def stop(self, timeout_s: float = 20.0) -> None:
        """End it with SIGTERM, and with SIGKILL when it has not left after `timeout_s`."""
        self.signal(signal.SIGTERM)
        if self.wait(timeout_s) is None:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the program and whatever it started, and reap it."""
        if self._popen.returncode is None:
            self._kill_group()
            self._popen.wait()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a dead group
            os.killpg(self.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """Return the last lines that this run wrote."""
        size = self.log.stat().st_size
        with self.log.open("rb") as log:
            log.seek(max(self._log_start_bytes, size - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:]) or "(it wrote nothing)"


def free_ports(count: int, avoid: frozenset[int] = frozenset()) -> list[int]:
    """Return `count` distinct loopback ports that nobody listens on at this moment.

    They lie below the kernel's ephemeral range: a client that reconnects to a stopped service
    would otherwise sooner or later be given that very port as its own, connect to itself and
    block the restart. Another program may still take one before it is used: retry the start.
    """
    top = _ephemeral_start()
    candidates = range(LOWEST_PORT, top) if top > LOWEST_PORT + 1000 else range(20_000, 60_000)
    found: list[int] = []
    for port in random.SystemRandom().sample(candidates, k=min(1000, len(candidates))):
        if port not in avoid and _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise ServiceError(f"no {count} free ports on {LOOPBACK} among 1000 tried in {candidates}")


def accepts_connections(port: int, timeout_s: float = 1.0) -> bool:
    """Tell whether something on the loopback interface accepts a TCP connection on `port`."""
    with suppress(OSError), closing(socket.create_connection((LOOPBACK, port), timeout_s)):
        return True
    return False


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the services bind
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _ephemeral_start() -> int:
    try:
        return int(_PORT_RANGE.read_text().split()[0])
    except OSError:  # not Linux: 49152 by RFC 6335
        return 49_152


@cache
def _spawner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-spawner")
