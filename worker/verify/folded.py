"""The nouns of the offline fold: what a record was, a key's state, what must have been predicted.

Owns no rule; refold.py fills them in, and the comparisons of keyfold-verify read them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from numpy.typing import NDArray

from keyfold.worker.verify.formers import Former
from keyfold.worker.verify.lost import Gap, Lost
from keyfold.worker.verify.offline_emit import Memory
from keyfold.worker.verify.offline_threshold import Judged

# "Cleared at" of a key that a step that was not finite left cold behind a loss.
NOT_EXACT, OPEN = -1, -2


class Kind(IntEnum):
    """What a record turned out to be."""

    EVENT = 0  # stepped: exactly one prediction
    RESET = 1  # a tombstone that resets its key: no prediction
    REJECT = 2  # a dead letter and nothing else


class Sure(IntEnum):
    """An answer where not all of the log is left."""

    NO = 0
    YES = 1
    OPEN = 2  # it depends on what is gone


@dataclass(frozen=True, slots=True)
class Origin:
    """What had happened before the first record that is folded."""

    lost: Lost = field(default_factory=Lost)  # offsets that were never applied
    complete: bool = True  # nothing was folded before; else keys may come with unknown states
    # If not complete: no stream time before the first record is above this (#S says so).
    stream_most: int | None = None
    # Offsets with a dead letter: taken at its word where the state before the event is not known.
    rejected: Container[int] = ()
    # Who folded the first of the records, where a fine-tune went on with their states; in order.
    formers: Sequence[Former] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that must stand in the dead-letter topic."""

    reason: str  # offline; the worker's words may differ where the step itself failed
    digest: int  # record_digest() of the record
    size: int  # bytes of its value


@dataclass(slots=True)
class KeyState:
    """A warm key's state after its last event."""

    steps: int  # since cold; if not known: since the first record folded
    offset: int  # of the last event that was stepped
    time_ms: int  # event time of the last event, a step that was not finite included
    touched_ms: int  # stream time right after that event
    seen: int  # offset of that event
    gap: Gap  # whether its next prediction says that lost events may be missing
    known: bool  # steps and tensors follow from the records
    # (R,*dims) in storage order; row 0 is the key's. Behind them stands what is not stored.
    tensors: list[NDArray[Any]]
    memory: Memory = field(default_factory=Memory)  # of what was emitted, where a rule says it
    answered_ms: int = 0  # event time of the last event that was stepped
    since: int = (
        0  # who folded when it was cold last: 0, or where states were inherited a later one
    )


@dataclass(frozen=True, slots=True)
class Cleared:
    """How a key without a state came to be cold."""

    at: int  # offset of the tombstone or expiry, NOT_EXACT or OPEN
    time_ms: int = 0  # event time of its last event; 0 behind a tombstone
    touched_ms: int = 0  # stream time right after that event


@dataclass(frozen=True, slots=True)
class Expected:
    """What the worker must have predicted for one event."""

    key: bytes  # the record key
    key_number: int  # of that key within the partition
    time_ms: int  # event time
    steps: int  # of the key, this one included
    output: list[float]  # (O,) the numbers of y, each a float32
    scores: list[float | None]  # per forecast field; None: nothing to compare with; [] without
    judged: Judged  # what the largest of them is judged by; NaN without
    event: int  # event_digest() of the members that the prediction repeats; 0: it repeats none
    gap: Gap  # whether the member "gap" must, may or must not be there
    known: bool  # steps and output are; else no more than the form can be checked
    text: str | None = None  # of a symbol that ends an answer: what the answer spells
