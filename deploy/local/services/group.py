"""Several services as one: started, stopped and removed together.

Owns the common life cycle, and new ports for all when one of them was taken meanwhile. What the
members are and how they find one another is said in kafka_cluster.py and valkey_*.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from .child import ServiceError
from .service import PORT_ATTEMPTS, PORT_TAKEN, PROBE_INTERVAL_S, Service

WAIT_S = 60.0


class ServiceGroup(ABC):
    """Base of the groups: usable as a context manager, or with start() and close()."""

    def __init__(self) -> None:
        """Prepare a group that has no members before its first start."""
        self._formed = False

    @property
    @abstractmethod
    def members(self) -> Sequence[Service]:
        """Return every program of the group."""

    @abstractmethod
    def form(self) -> None:
        """Make the members, start them and join them; called once, or again on other ports."""

    @abstractmethod
    def ready(self) -> None:
        """Return once the members serve together."""

    @property
    def running(self) -> bool:
        """Tell whether every member is alive (not whether it answers)."""
        return self._formed and all(member.running for member in self.members)

    def start(self) -> Self:
        """Start what does not run and return once the group serves.

        Raises: ServiceError, quoting the end of a log, when it does not come up.
        """
        if self._formed:
            start_all([member for member in self.members if not member.running])
            self.ready()
            return self
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                self.form()
                self.ready()
            except ServiceError as error:
                self.close()
                if attempt == PORT_ATTEMPTS or not PORT_TAKEN.search(str(error)):
                    raise
            else:
                break
        self._formed = True
        return self

    def stop(self) -> None:
        """End all in an orderly way (SIGTERM), keeping ports and data."""
        if self.members:  # at once: the last broker of a cluster cannot leave it in order
            with ThreadPoolExecutor(len(self.members)) as threads:
                list(threads.map(Service.stop, self.members))

    def close(self) -> None:
        """Kill all and remove their temporary folders."""
        for member in self.members:
            member.close()

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        """Return once `condition()` holds.

        Raises: ServiceError, quoting every log, when it does not in time.
        """
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                running = [member for member in self.members if member.running]
                tails = "\n".join(f"{m.log}:\n{m.child.log_tail()}" for m in running)
                raise ServiceError(f"expected {what} within {WAIT_S:g} s\n{tails}")
            time.sleep(PROBE_INTERVAL_S)

    def __enter__(self) -> Self:
        """Start all, leaving nothing behind when that fails."""
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
        """Close all."""
        self.close()


def start_all(services: Sequence[Service]) -> None:
    """Start services side by side: each may wait for the others before it answers."""
    if not services:
        return
    with ThreadPoolExecutor(len(services)) as threads:
        started = [threads.submit(service.start) for service in services]
        wait(started, return_when=FIRST_EXCEPTION)
        failed = [one.exception() for one in started if one.done() and one.exception()]
        for error in filter(None, failed):
            for service in services:
                service.kill()  # the others may wait for the one that failed
            raise error
