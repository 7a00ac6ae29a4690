"""The pages that say how a worker is: /live, /ready and /health, on Faust's web server (loopback).

Owns what each answer means. It decides nothing and changes nothing. Registered by worker/app.py;
the port is tried by worker/cli.py before Faust starts.

    /live    200 while the event loop goes round (it is what answers) and the watchdog watches. Not
             200, or no answer: restart the worker.
    /ready   200 when this worker has joined its group and none of its partitions is still on its
             way to RUN. A HALT does not count, because no restart and no waiting resolves it, and
             the other partitions must not suffer; only a worker with nothing but HALTs is not
             ready, so that a rollout of a bundle that halts everything stops at its first worker.
             Not while Kafka or Redis is away.
    /health  for people and alerts, all details in JSON: 503 when any partition is halted, and when
             the worker has not joined its group because Redis has never answered it. Still 200
             while a service is away that was there: nothing of the worker's is wrong then, and
             `waiting_for` tells it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from keyfold.worker.errors import SetUpError
from keyfold.worker.liveness.kafka_away import waiting_for_kafka
from keyfold.worker.liveness.watchdog import Watchdog, waiting_for_redis
from keyfold.worker.metrics import Metrics
from keyfold.worker.owner import Owner
from keyfold.worker.protocol import Phase

HOST = "127.0.0.1"

Answer = tuple[int, dict[str, Any]]


class Subject(Protocol):
    """The worker that the pages are about."""

    metrics: Metrics
    watchdog: Watchdog
    failure: BaseException | None

    @property
    def waits_to_join(self) -> str:
        """Why this worker has not asked the group for partitions yet, "" when it has."""

    @property
    def joined(self) -> bool:
        """Whether the group has given this worker its partitions, be it none."""

    def owners(self) -> list[Owner]:
        """Return the owners of this worker's partitions."""


def live(worker: Subject) -> Answer:
    """Answer whether the worker should be left running."""
    why = worker.watchdog.failure or (f"stopping: {worker.failure}" if worker.failure else "")
    return (503, {"live": False, "why": why}) if why else (200, {"live": True})


def ready(worker: Subject) -> Answer:
    """Answer whether the worker serves what it was given."""
    why = _why_not_ready(worker)
    return (503, {"ready": False, "why": why}) if why else (200, {"ready": True})


def health(worker: Subject) -> Answer:
    """Answer with every partition's phase and progress; 503 when one is halted, or none joined."""
    owners = worker.owners()
    halted = {str(o.partition.number): o.partition.halted for o in owners if o.halted}
    phases = {str(o.partition.number): o.partition.phase.value for o in owners}
    return 503 if halted or worker.waits_to_join else 200, {
        "partitions": phases,
        "halted": halted,
        "progress": {str(o.partition.number): _progress(o, worker.watchdog) for o in owners},
        "waiting_for": _waiting_for() or worker.waits_to_join,
        "totals": worker.metrics.counts(),
    }


def check_port(port: int) -> None:
    """See that the web server will get its port (0: it will not run). Raises SetUpError."""
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the web server binds
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetUpError(
                f"worker.web_port: expected a free port on {HOST}, got {port}: {error.strerror}"
            ) from error


def _why_not_ready(worker: Subject) -> str:
    if worker.failure is not None:
        return f"stopping: {worker.failure}"
    if worker.waits_to_join:
        return worker.waits_to_join
    if waiting_for_kafka():
        return f"waiting for {waiting_for_kafka()}"
    if not worker.joined:
        return "waiting for the group to give out its partitions"
    if waiting_for_redis():
        return f"waiting for {waiting_for_redis()}"
    owners = worker.owners()
    on_their_way = _named(
        [o for o in owners if not o.halted and o.partition.phase is not Phase.RUN]
    )
    if on_their_way:
        return f"not in run yet: {on_their_way}"
    if owners and all(owner.halted for owner in owners):
        return "every partition of this worker is halted; see /health"
    return ""


def _waiting_for() -> str:
    return "; ".join(filter(None, (waiting_for_kafka(), waiting_for_redis())))


def _named(owners: Sequence[Owner]) -> str:
    return ", ".join(f"{o.partition.number} in {o.partition.phase.value}" for o in owners)


def _progress(owner: Owner, watchdog: Watchdog) -> dict[str, Any]:
    saved, number = owner.partition.saved, owner.partition.number
    # The end is known from fetches, and of a partition that stands still by the watchdog's asking.
    end = max(saved + owner.lag, watchdog.log_end(number))
    unmoved_s = watchdog.unmoved_s(number, saved)
    return {
        "watermark": saved,
        "log_end": end,
        "lag": end - saved,
        "unmoved_s": None if unmoved_s is None else round(unmoved_s, 1),
    }


PAGES: Mapping[str, Callable[[Any], Answer]] = {
    "/live": live, "/ready": ready, "/health": health
}  # fmt: skip
