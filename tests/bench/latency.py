"""Latency at a steady pace: from when an event was due to its prediction in a consumer's hands.

Owns one measurement at one pace: a worker on an empty topic, a producer and a consumer as programs
of their own. What is told is the age of an event when a consumer holds its prediction, which is a
little more than the time to the ack (see latency_consumer.py). Called by run.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import Bench
from cases import Case
from live_worker import Serving

from local.services import Child

HERE = Path(__file__).parent
WARM_UP_S = 5.0  # at the same pace, not counted: states are loaded, the broker grows quick
LOOKED_AT = 300_000  # about so many predictions
SHARES = (0.1, 0.5, 0.8)  # of the maximum
LIMIT_S = 120.0  # beyond the time of sending


@dataclass(frozen=True, slots=True)
class Latency:
    """What one pace has shown."""

    share: float  # of the maximum
    asked: float  # events/s
    sent: float  # events/s that the producer has reached
    ms: dict[str, float]  # p50, p99, p99.9

    @property
    def kept_pace(self) -> bool:
        """Whether the events came as fast as they should; else the figures are of another pace."""
        return self.sent > 0.95 * self.asked


def latency(bench: Bench, case: Case, share: float, rate: float, seconds: float) -> Latency:
    """Measure at `rate` events/s, which is `share` of the maximum."""
    serving = bench.serving(case)
    assert case.traffic.form == "json", "the producer writes JSON"
    events, skipped = int(rate * (seconds + WARM_UP_S)), int(rate * WARM_UP_S)
    stride = max(1, (events - skipped) // LOOKED_AT)
    isolation = "read_committed" if case.outputs == "exactly-once" else "read_uncommitted"
    with bench.running(serving, case) as workers:
        serving.wait_until(
            lambda: all(_acquired(worker, serving) for worker in workers), "partitions", workers
        )
        consumer = _program(
            serving, "latency_consumer.py", serving.output, str(serving.partitions),
            *map(str, (events, skipped, stride)), isolation,
        )  # fmt: skip
        producer = _program(serving, "latency_producer.py", serving.input, str(events), str(rate))
        ends = [consumer, producer]
        try:
            serving.wait_until(
                lambda: any(end.exit_code is not None for end in ends),
                "an end of producer or consumer", workers, seconds + WARM_UP_S + LIMIT_S,
            )  # fmt: skip
            # The one that failed explains why the other waits in vain.
            ends.sort(key=lambda end: end.exit_code is None)
            said = {end: _last_line(end) for end in ends}
        finally:
            for end in ends:
                end.kill()
        serving.wait_saved(workers)
    bench.forget(serving)
    bench.kafka.delete_topic(serving.input)
    return Latency(share, rate, float(said[producer]), json.loads(said[consumer]))


def _acquired(worker: Child, serving: Serving) -> bool:
    return worker.log.read_text().count("acquired at") >= serving.partitions


def _program(serving: Serving, name: str, *arguments: str) -> Child:
    log = serving.folder / f"{serving.output}-{name}.log"
    return Child([sys.executable, str(HERE / name), serving.kafka.address, *arguments], log)


def _last_line(child: Child) -> str:
    """Wait for a program's end and return what it said last."""
    if child.wait(LIMIT_S) != 0:
        raise SystemExit(
            f"{' '.join(child.command[:2])} ended with {child.exit_code}:\n{child.log_tail()}"
        )
    return child.log_tail().splitlines()[-1]
