"""Which peers there are, and how each is made ready and started.

Owns the list. Knows nothing of measuring. Called by driver.py. The peer in Java describes itself in
kafka_streams/description.py (`PEERS`), as far as that is there.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peers import environments
from peers.environments import HERE
from peers.interface import Case, Peer

BENCH = str(HERE.parent)  # so that a peer finds `peers.step`


def all_peers() -> dict[str, Peer]:
    """Return every peer by its name, the slowest kind first."""
    found = [
        _python("faust_agent", 10_000, "one event at a time, GET/SET", _faust),
        _python("faust_take", 40_000, "take(2000), waves, MGET/MSET", _faust),
        _python("quix", 150_000, "own RocksDB, changelog topic", _plain),
        _python("bytewax", 300_000, "own state, snapshot each 10 s", _bytewax),
        _python("pathway", 400_000, "own state, input kept each 10 s", _plain),
        _python("confluent", 2_000_000, "by hand: lots, waves, MGET/MSET", _plain),
    ]
    if (HERE / "kafka_streams" / "description.py").is_file():
        found += importlib.import_module("peers.kafka_streams.description").PEERS
    return {peer.name: peer for peer in found}


def _python(name: str, events: int, note: str, command: Callable[[str, Case], list[str]]) -> Peer:
    make: Callable[[], Path] = partial(environments.make, name)
    env = (("PYTHONPATH", BENCH), ("PYTHONUNBUFFERED", "1"))
    return Peer(name, make, partial(command, name), events, note, env)


def _plain(name: str, _case: Case) -> list[str]:
    return [str(environments.python_of(name)), str(HERE / name / "peer.py")]


def _faust(name: str, case: Case) -> list[str]:
    data = f"--datadir={case.folder / name}"
    return [*_plain(name, case), data, "--loop=uvloop", "worker", "--loglevel=warn"]


def _bytewax(name: str, case: Case) -> list[str]:
    # The recovery store is made by a program of its own, before the flow's first start.
    python, store = shlex.quote(str(environments.python_of(name))), '"$PEER_STATE_DIR"'
    init = f"{python} -m bytewax.recovery {store} 1"
    run = f"exec {python} -m bytewax.run peers.bytewax.peer:flow -r {store} -s 10 -b 0"
    return ["/bin/sh", "-c", f"{init} && {run}"]
