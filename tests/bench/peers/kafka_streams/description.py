"""The two peers in Java, as the driver of the peers sees them.

Owns their names, commands and notes. The program is built by build.py and gets its settings from
the environment. Called by peers/catalogue.py.
"""

from __future__ import annotations

from pathlib import Path

from peers.interface import Case, Peer
from peers.kafka_streams.build import build

# A Java program spends its first seconds on its compiler. Both serve the same input for trial
# first, into topics of their own, so that the seconds that count are those of a warm one.
WARMUP_S = "20"  # of processor time


def _prepare() -> Path:
    build()
    return Path(__file__).resolve().parent


def _command(_case: Case) -> list[str]:
    return build()


def _peer(name: str, variant: str, events: int, note: str) -> Peer:
    env = (("PEER_VARIANT", variant), ("PEER_WARMUP_S", WARMUP_S))
    return Peer(name, _prepare, _command, events, note, env)


PEERS = [
    _peer("streams_event", "per_event", 400_000, "Java, RocksDB, one run per event"),
    _peer("kafka_streams", "buffered", 2_000_000, "Java, RocksDB, cache, buffer, waves"),
]
