"""`keyfold-worker` that kills itself with SIGKILL at a named point, when a file tells it to.

Owns what each point of the fault campaign is in the product: a method, before or after which the
program dies. The product has no hooks: its methods are wrapped here from outside. The order is a
file named by KEYFOLD_FATAL_FILE with "point:before|after:nth"; it may come at any time and counts
from then on. Run as a program by campaign/workers.py; it takes keyfold-worker's arguments.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

FILE = "KEYFOLD_FATAL_FILE"
# Where a point has moved in the product, its new place is written here; test_campaign.py holds all
# of them to the present one.
POINTS = {
    "acquire": "keyfold.worker.store:Store.acquire",
    "decode": "keyfold.export.decode:_Numbers.decode",
    "load": "keyfold.worker.store:Store.load",
    "step": "keyfold.worker.fold:Fold.apply",
    "hand-over": "keyfold.worker.pipeline:Pipeline._hand_over",
    "emit": "keyfold.worker.emit:Packing.emit",
    "save": "keyfold.worker.store:Store.save",
    "hint": "keyfold.worker.intake:ConsumerThread.set_committed",
}
TRANSACTION_POINTS = {
    "transaction-open": "keyfold.worker.transactions:Transactions.open",
    "transaction": "keyfold.worker.transactions:Transactions.send",
    "transaction-offset": "keyfold.worker.transactions:Transactions._send_offset",
}


class Fate:
    """What was ordered, and how often each point has been passed since."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._order = ""
        self._passed: Counter[str] = Counter()

    def pass_by(self, place: str) -> None:
        """Die here, if "point:side" is where and when it was ordered."""
        try:
            order = self._file.read_text()
        except OSError:
            order = ""
        if order != self._order:
            self._order = order
            self._passed.clear()
        if not order.startswith(f"{place}:"):
            return
        self._passed[place] += 1
        if self._passed[place] == int(order.rpartition(":")[2]):
            say(f"dies at {order}")
            os.kill(os.getpid(), signal.SIGKILL)


def say(what: str) -> None:
    """Write a line that campaign/workers.py reads, past all buffers."""
    os.write(2, f"FATAL {time.time() * 1000:.0f} {what}\n".encode())


def find(where: str) -> tuple[type, str, Any]:
    """Return the class, the name and the function that "module:Class.method" names."""
    module, _, path = where.partition(":")
    owner, _, name = path.partition(".")
    cls = getattr(importlib.import_module(module), owner)
    return cls, name, cls.__dict__[name]


def wrap(point: str, where: str, fate: Fate) -> None:
    """Let a method pass by its fate on both sides."""
    cls, name, method = find(where)

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def waiting(*args: Any, **options: Any) -> Any:
            fate.pass_by(f"{point}:before")
            result = await method(*args, **options)
            fate.pass_by(f"{point}:after")
            return result

        setattr(cls, name, waiting)
    else:

        @functools.wraps(method)
        def plain(*args: Any, **options: Any) -> Any:
            fate.pass_by(f"{point}:before")
            result = method(*args, **options)
            fate.pass_by(f"{point}:after")
            return result

        setattr(cls, name, plain)


def tell_nonce() -> None:
    """Say under which nonce this worker owns partitions: Redis shows the same one."""
    cls, name, acquire = find(POINTS["acquire"])
    parameters = inspect.signature(acquire)
    told: set[str] = set()

    @functools.wraps(acquire)
    def telling(*args: Any, **options: Any) -> Any:
        nonce = parameters.bind(*args, **options).arguments["nonce"]
        if nonce not in told:
            told.add(nonce)
            say(f"nonce {nonce}")
        return acquire(*args, **options)

    setattr(cls, name, telling)


def main() -> int:
    """Wrap the product and run it."""
    from keyfold.worker import cli

    fate = Fate(Path(os.environ[FILE]))
    for point, where in (POINTS | TRANSACTION_POINTS).items():
        wrap(point, where, fate)
    tell_nonce()
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
