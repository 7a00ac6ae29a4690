"""How long each fault kept predictions away, read from the topics afterwards.

Pure but for the two topics it is handed as rows. A prediction's record is stamped by the worker
that emits it, a strike by this program, on one machine and clock: the outage of a partition lasts
from the strike to the first prediction that had not been emitted before. Used by run.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from campaign.scene import Scene
from campaign.stage import Strike
from keyfold.worker.kafka.log import KafkaLog

# A partition whose next event came later than this was not waiting for its worker.
WAITING_MS = 500


@dataclass(frozen=True, slots=True)
class Emitted:
    """One prediction as it stands in the output."""

    offset: int  # of the event it is about
    at_ms: int  # when it was emitted


@dataclass(frozen=True, slots=True)
class Recovery:
    """How one fault was got over."""

    kind: str  # of the fault
    seconds: float  # to the next new prediction, of the slowest partition that had waiting events


def recoveries(
    strikes: Sequence[Strike],
    emitted: Mapping[int, Sequence[Emitted]],
    arrived: Mapping[int, Mapping[int, int]],
) -> list[Recovery]:
    """Return a recovery per strike; none for a strike that no event was waiting behind.

    `arrived`: when (ms) each event came in, by partition and offset.
    """
    found = []
    for strike in strikes:
        outages = [
            outage
            for partition in strike.partitions
            if (outage := _outage(strike, emitted.get(partition, ()), arrived.get(partition, {})))
            is not None
        ]
        if outages:
            found.append(Recovery(strike.kind, max(outages) / 1000))
    return found


def _outage(strike: Strike, emitted: Sequence[Emitted], arrived: Mapping[int, int]) -> int | None:
    """Return the milliseconds from the strike to the first new prediction."""
    newest = max((e.offset for e in emitted if e.at_ms <= strike.at_ms), default=-1)
    after = [e for e in emitted if e.at_ms > strike.at_ms and e.offset > newest]
    if not after:
        return None
    first = min(after, key=lambda e: e.at_ms)
    came_ms = arrived.get(first.offset)
    if came_ms is None or came_ms > strike.at_ms + WAITING_MS:
        return None
    return first.at_ms - strike.at_ms


def read_emitted(scene: Scene) -> dict[int, list[Emitted]]:
    """Read the output topic."""
    found: dict[int, list[Emitted]] = {}
    with KafkaLog(scene.kafka.address) as log:
        for number in range(scene.partitions):
            extent = log.extent(scene.output, number)
            rows = found.setdefault(number, [])
            for message in log.read(scene.output, number, extent.start, extent.end):
                identity = str(json.loads(message.value() or b"{}")["id"])
                offset = int(identity.rsplit(":", 2)[1])
                rows.append(Emitted(offset, message.timestamp()[1]))
    return found


def read_arrived(scene: Scene) -> dict[int, dict[int, int]]:
    """Read when each record of the input came in."""
    with KafkaLog(scene.kafka.address) as log:
        return {
            number: {
                (message.offset() or 0): message.timestamp()[1]
                for message in log.read(scene.input, number, *_bounds(log, scene.input, number))
            }
            for number in range(scene.partitions)
        }


def _bounds(log: KafkaLog, topic: str, partition: int) -> tuple[int, int]:
    extent = log.extent(topic, partition)
    return extent.start, extent.end


def percentile(values: Iterable[float], part: float) -> float | None:
    """Return the smallest value that at least `part` of all do not exceed."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]
