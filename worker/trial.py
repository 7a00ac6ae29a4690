"""Events through a worker's own pipeline without Kafka and Redis: every key starts cold.

Owns what stands in for the partition's owner and for the state store: nothing is loaded, nothing is
emitted, nothing is saved. The path itself (decode, place, fold, encode) is worker/pipeline.py's.
Called by worker/first_day/dry_run.py, worker/first_day/init.py, worker/score/scoring.py and
worker/check/kafka.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

from keyfold.worker.emission import Emission
from keyfold.worker.emit import Outputs
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.partition import Partition
from keyfold.worker.pipeline import Pipeline, Shown
from keyfold.worker.protocol import Fingerprint, Held, Phase
from keyfold.worker.protocol import Record as LogRecord
from keyfold.worker.records import Records
from keyfold.worker.share import Share
from keyfold.worker.slots import Rows, Slots
from keyfold.worker.store import Loaded


class Trial:
    """A pipeline that serves nobody."""

    def __init__(
        self,
        model: Model,
        topic: str,
        passthrough: Sequence[str] = (),
        rule: Emission | None = None,
    ) -> None:
        self._topic, self._outputs = topic, model.bundle.manifest.outputs
        self.metrics = Metrics()
        self.slots = Slots(model.bundle.manifest, () if rule is None else rule.states)
        nowhere = cast(Any, _NoStates())
        shown = Shown(topic, passthrough, rule)
        self._pipeline = Pipeline(model, self.slots, nowhere, self.metrics, shown)
        self._owners: dict[int, _Owner] = {}

    def run(self, shares: Iterable[tuple[int, Sequence[LogRecord]]]) -> list[tuple[int, Outputs]]:
        """Take records of several partitions along the path as one micro-batch.

        Returns each partition's number and what a worker would emit for its records.
        """
        asyncio.run(self._run([share for share in shares if share[1]]))
        return [
            (number, outputs) for number, owner in self._owners.items() for outputs in owner.flush()
        ]

    @property
    def pending(self) -> str:
        """Say how many events have no answer; "" where that cannot be, or there are none."""
        steps = [int(self.slots.steps[slot]) for slot in self.slots.all()]
        if self._outputs.answers == "session":
            count = sum(one > 0 for one in steps)
            return f"{count:,} sessions are open: not answered yet" if count else ""
        if not self._outputs.delay or not self.metrics.events:
            return ""
        count = sum(min(self._outputs.delay, one) for one in steps)
        return (
            f"{count:,} events are not answered yet, the last {self._outputs.delay} of each key "
            "(outputs.delay); nor are the last ones before a key started anew"
        )

    async def _run(self, shares: Sequence[tuple[int, Sequence[LogRecord]]]) -> None:
        taken: list[Share] = []
        first = 0
        for number, records in shares:
            owner = self._owners.setdefault(number, _Owner(Partition(self._topic, number, "")))
            run = Records.of(records)
            taken.append(Share(cast(Any, owner), owner.partition.fence, run, first))
            first += len(records)
        if taken:
            await self._pipeline.micro_batch(taken)


class _Owner:
    """Stands in for worker/owner.py: notes what would be emitted."""

    def __init__(self, partition: Partition) -> None:
        partition.phase = Phase.RUN
        self.partition = partition
        self._outputs: list[Outputs] = []

    def __str__(self) -> str:
        return str(self.partition)

    def applied(
        self, records: Records, rows: Rows, outputs: Outputs, stream_ms: int | None
    ) -> None:
        last = records[-1]
        self.partition.apply(last.offset + 1, Fingerprint.of(last), stream_ms)
        self._outputs.append(outputs)

    def flush(self) -> list[Outputs]:
        """Return what was noted and forget it."""
        noted, self._outputs = self._outputs, []
        return noted

    def judge_held(self, held: Held, since: int) -> bool:
        return True


class _NoStates:
    """Stands in for worker/store.py: it has no state of any key."""

    async def load(self, topic: str, partition: int, keys: Sequence[bytes]) -> Loaded:
        return Loaded(Held(0, 0, "", ""), [None] * len(keys))
