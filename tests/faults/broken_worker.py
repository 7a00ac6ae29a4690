"""A worker with a fault of its own, to show that the campaign's verdict turns red.

Owns the sabotage: every third emission of predictions is thrown away, as a worker would that saves
before its outputs are acked. All else is fatal_worker.py's. Run as a program by test_campaign.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fatal_worker


def main() -> int:
    """Break the product and run it."""
    packing, name, emit = fatal_worker.find(fatal_worker.POINTS["emit"])
    turn = 0

    async def forgetful(self: Any, producer: Any, partition: int, outputs: Sequence[Any]) -> None:
        nonlocal turn
        turn += 1
        if turn % 3:
            await emit(self, producer, partition, outputs)

    setattr(packing, name, forgetful)
    return fatal_worker.main()


if __name__ == "__main__":
    raise SystemExit(main())
