"""What the driver and a peer agree on: how a peer is made ready, started, told what to do.

Owns the form of that agreement and nothing that runs. A peer is any program: it gets its settings
from the environment (`settings`), reads PEER_INPUT from its start, and answers every event with one
record of the same key in PEER_OUTPUT:

    {"about": "TOPIC:PARTITION:OFFSET", "output": {"NAME": NUMBER}}

Used by driver.py, catalogue.py and kafka_streams/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keyfold.export.bundle import MANIFEST, STEP, Bundle


@dataclass(frozen=True, slots=True)
class Case:
    """What is served in one measurement; every peer of a comparison gets an equal one."""

    brokers: str  # host:port of a real Kafka
    input: str  # topic that holds `events` JSON events, or more
    redis: str  # redis://host:port/0
    bundle: Bundle  # one regression output, plain required numbers
    folder: Path  # logs and local stores go into a new folder below it
    events: int  # how many of the input are served; the rest stays unread


@dataclass(frozen=True, slots=True)
class Peer:
    """One program that serves the same events."""

    name: str  # of its folder and in tables
    prepare: Callable[[], Path]  # make it ready to run, at once when it is; return where it lies
    command: Callable[[Case], list[str]]  # command line of a prepared one
    events: int  # about 20 s of its work on a slow core: fewer than a case may ask for
    note: str  # what a reader of its figure has to know, in a few words
    env: tuple[tuple[str, str], ...] = ()  # variables of its own


def settings(case: Case, output: str, group: str, stores: Path) -> dict[str, str]:
    """Return the environment variables that tell a peer what to serve."""
    manifest = case.bundle.manifest
    return {
        "PEER_BROKERS": case.brokers,
        "PEER_INPUT": case.input,
        "PEER_OUTPUT": output,
        "PEER_GROUP": group,  # also the prefix of everything it keeps in Redis
        "PEER_REDIS": case.redis,
        "PEER_MODEL": str(case.bundle.path / STEP),
        "PEER_MANIFEST": str(case.bundle.path / MANIFEST),
        "PEER_FEATURES": ",".join(manifest.features.columns),
        "PEER_STATE_DIR": str(stores),
    }
