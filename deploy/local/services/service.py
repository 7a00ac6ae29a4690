"""A local service: a child program with a data folder, ports and a real readiness check.

Owns the life cycle (start, stop, kill, restart with the same ports and data) and the retry when
another program takes the chosen port. Knows nothing of any protocol: kafka.py and valkey.py say
how to run one and how to see that it answers.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from .child import LOOPBACK, Child, ServiceError, accepts_connections, free_ports

PORT_ATTEMPTS = 5
PROBE_INTERVAL_S = 0.02

PORT_TAKEN = re.compile(r"address (already )?in use|BindException|os error 98", re.IGNORECASE)


class Service(ABC):
    """Base of the services: usable as a context manager, or with start() and close()."""

    name: ClassVar[str]
    ports_needed: ClassVar[int] = 1
    start_timeout_s: ClassVar[float] = 30.0

    def __init__(self, folder: Path | None = None) -> None:
        """Prepare a service that keeps data and log in `folder`.

        Without `folder` it gets a temporary one, which close() removes; a given one is kept.
        """
        self._given_folder = folder
        self._folder: Path | None = None
        self._ports: list[int] = []
        self._child: Child | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of its data and log, making it if need be."""
        if self._folder is None:
            made = self._given_folder or Path(tempfile.mkdtemp(prefix=f"keyfold-{self.name}-"))
            made.mkdir(parents=True, exist_ok=True)
            self._folder = made.resolve()
        return self._folder

    @property
    def log(self) -> Path:
        """Return the file that holds what the program printed, over all its starts."""
        return self.folder / f"{self.name}.log"

    @property
    def port(self) -> int:
        """Return the port that clients use; it stays the same from the first start on."""
        if not self._ports:
            raise ServiceError(f"{self.name} has no port before its first start")
        return self._ports[0]

    @property
    def address(self) -> str:
        """Return `host:port`."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def child(self) -> Child:
        """Return the running program. Raises: ServiceError when it was not started."""
        if self._child is None:
            raise ServiceError(f"{self.name} is not running")
        return self._child

    @property
    def pid(self) -> int:
        """Return the process id of the running program."""
        return self.child.pid

    @property
    def running(self) -> bool:
        """Tell whether the program is alive (not whether it answers)."""
        return self._child is not None and self._child.exit_code is None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line, writing the configuration it needs for `self._ports`."""

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether *this* instance serves a real request now."""

    def start(self) -> Self:
        """Start it and return once it answers; a running one is left alone.

        Raises: ServiceError, quoting the end of the log, when it does not come up.
        """
        if self.running:
            return self
        if self._ports:
            self._start_once()
            return self
        tried: frozenset[int] = frozenset()
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._ports = free_ports(self.ports_needed, avoid=tried)
            tried |= frozenset(self._ports)
            try:
                self._start_once()
            except ServiceError as error:
                self._ports = []
                if attempt == PORT_ATTEMPTS or not PORT_TAKEN.search(str(error)):
                    raise
            else:
                break
        return self

    def stop(self) -> None:
        """End it in an orderly way (SIGTERM), keeping ports and data."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def kill(self) -> None:
        """End it with SIGKILL, keeping ports and data."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def pause(self) -> None:
        """Freeze it with SIGSTOP: connections stay open, nothing answers."""
        self.child.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self.child.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same ports with its data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and remove its temporary folder."""
        self.kill()
        if self._folder is not None and self._given_folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        """Start it, leaving nothing behind when that fails."""
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _start_once(self) -> None:
        self._child = Child(self.command(), self.log)
        try:
            self._await_answer(self._child)
        except BaseException:  # Ctrl-C included: half a start is no start
            self.kill()
            raise

    def _await_answer(self, child: Child) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            if child.exit_code is not None:
                raise self._failure(f"ended with exit code {child.exit_code} while starting", child)
            if accepts_connections(self.port) and self.answers():
                return
            time.sleep(PROBE_INTERVAL_S)  # between two real attempts to connect
        raise self._failure(f"did not answer within {self.start_timeout_s:g} s", child)

    def _failure(self, what: str, child: Child) -> ServiceError:
        return ServiceError(
            f"{self.name} on {self.address} {what}\n"
            f"command: {' '.join(child.command)}\nend of {self.log}:\n{child.log_tail()}"
        )
