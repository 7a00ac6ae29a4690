"""Kafka is away from a running worker: said at once, at times while it lasts, and when it is over.

Owns that word, and what aiokafka says meanwhile: up to 80 lines in a second, none of which tells
more. It decides nothing: no read or write depends on it. The intake asks once in a second and calls
note_answer or note_silence; health.py shows the word, worker/cli.py puts the filter in the log.
"""

from __future__ import annotations

import logging
import threading
import time

from keyfold.export.connection import Connection
from keyfold.export.refusals import why_refused

log = logging.getLogger(__name__)

SAY_EVERY_S = 30.0
LOOK_S = 2.0  # of the look at the brokers' doors
REPEAT_S = 30.0  # aiokafka's line about a connection passes once in so long
# How aiokafka 0.14 begins what it says of a broker that does not answer.
OF_CONNECTIONS = (
    "Unable connect to", "Unable to request metadata", "Unable to update metadata",
    "Failed fetch messages", "Failed fetch offsets", "Error sending %s to node",
    "Marking the coordinator dead", "Group Coordinator Request failed",
    "Heartbeat session expired", "Heartbeat send request failed", "FindCoordinator Request failed",
    "Cannot send %r to", "Could not send %r", "Got error produce response: %s",
    "Heartbeat failed for group %s: coordinator", "OffsetCommit failed before join",
)  # fmt: skip

_why = ""  # Kafka is away; one worker per program
_since_s = _said_s = 0.0


def note_answer() -> None:
    """Note that a broker has answered this worker's client."""
    global _why
    if _why:
        log.warning("Kafka answers again, after %.0f s", time.monotonic() - _since_s)
    _why = ""


def note_silence(kafka: Connection) -> None:
    """Note that no broker answered this worker's client; blocks for the look whether one would.

    Where one lets us in it is not away: a client that is stuck is the watchdog's.
    """
    global _why, _since_s, _said_s
    refusal = why_refused(kafka, LOOK_S)
    if refusal is None:
        return
    now_s = time.monotonic()
    if not _why:
        _since_s, _said_s = now_s, float("-inf")
    _why = f"Kafka at {kafka} does not answer ({refusal.text})"
    if now_s - _said_s >= SAY_EVERY_S:
        _said_s = now_s
        log.warning("%s; trying again", _why)


def waiting_for_kafka() -> str:
    """Say why the worker waits for Kafka, "" when it does not."""
    return _why


class Quiet(logging.Filter):
    """Keeps back what aiokafka repeats of brokers that do not answer, from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._passed_s: dict[str, float] = {}  # by how the line begins: when one passed

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a line about a connection pass once in a while, and none while Kafka is away."""
        if not record.name.startswith("aiokafka"):
            return True
        text = str(record.msg)
        kind = next((begin for begin in OF_CONNECTIONS if text.startswith(begin)), None)
        if kind is None:
            return True
        now_s = time.monotonic()
        with self._lock:
            if _why or now_s - self._passed_s.get(kind, float("-inf")) < REPEAT_S:
                return False
            self._passed_s[kind] = now_s
        return True
