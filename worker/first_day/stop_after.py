"""--max-events N: a worker that serves N records and then stops as if it had been told to.

Owns the count. It cuts the last micro-batch short, so that exactly N records are applied, emitted
and saved by a drained stop; the records behind them are not touched. Called by worker/cli.py.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace

from keyfold.worker.pipeline import Pipeline
from keyfold.worker.share import Share

log = logging.getLogger(__name__)


def stop_after(pipeline: Pipeline, most: int) -> None:
    """Have a pipeline take `most` records in all, then end the program by SIGTERM (drained)."""
    micro_batch, left = pipeline.micro_batch, most

    async def limited(shares: Sequence[Share]) -> None:
        nonlocal left
        taken = cut(shares, left)
        left -= sum(len(share.records) for share in taken)
        if taken:
            await micro_batch(taken)
        if taken and not left:
            log.info("--max-events %d: that many records were taken; stopping", most)
            os.kill(os.getpid(), signal.SIGTERM)

    pipeline.micro_batch = limited  # type: ignore[method-assign]


def cut(shares: Sequence[Share], most: int) -> list[Share]:
    """Keep the first `most` records. What is cut off was taken, but is never applied."""
    kept = []
    for share in shares:
        count = min(len(share.records), most)
        most -= count
        if count:
            kept.append(replace(share, records=share.records[:count]))
    return kept
