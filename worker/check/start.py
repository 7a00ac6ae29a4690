"""keyfold-worker check's question where a group that is new would begin.

Owns what worker.start comes to in a partition without state and group offset; it reads no record.
Called by redis.py, which has looked at both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from keyfold.worker.beginning import STARTS, moment
from keyfold.worker.check.report import Finding, fail, warn
from keyfold.worker.config import Config
from keyfold.worker.kafka.samples import open_log
from keyfold.worker.state.survey import Place


def where_it_begins(config: Config, places: Sequence[Place]) -> Iterator[Finding]:
    """Yield what is wrong with worker.start for the partitions that begin there. Raises Crash."""
    start, group = config.worker.start, config.kafka.group
    new = [place for place in places if place.held is None and place.committed is None]
    if new and not start:
        yield fail(
            f"worker.start is not set, and group {group} has neither state nor offset in "
            f"{len(new)} of {len(places)} partitions, so that a worker ends at once: set it to "
            "earliest or latest, or to a time or -7d"
        )
    filled = [place.number for place in new if place.extent.end > place.extent.start]
    if start in STARTS or not filled:
        return
    at_ms = max(moment(start).at(int(time.time() * 1000)), 0)
    topic = config.kafka.input
    with open_log(config) as log:
        if any(log.offset_at(topic, number, at_ms) is not None for number in filled):
            return
    yield warn(
        f"worker.start {start}: {topic} holds no record as young as that; a worker begins at the "
        "log's end as it finds it, as with latest"
    )
