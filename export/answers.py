"""What a key's state keeps for predictions that describe another event than the newest.

Owns the tensors that hold it and how an event changes them: the last answer of a session, until the
session ends, and the last events of a key that answers late (look-ahead). Pure numpy around the
graph, as front.py: the same events give the same tensors however they are grouped into calls.
Called by bundle.py (which tensors there are) and by the worker's fold; keyfold-verify has an own
reading in worker/verify/offline_answers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import SpecError
from keyfold.export.event_spec import EventSpec
from keyfold.export.outputs import OutputSpec
from keyfold.export.states import StateSpec, Tensors, own_state
from keyfold.export.text import Text

ANSWER, ANSWER_MS = "back.answer", "back.answer_ms"
MOST_EVERY = (1 << 22) + 256  # numbers of one event: 16,384 bytes of text, 256 of each
LATE_OFFSETS, LATE_MS = "back.late_offsets", "back.late_ms"

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Happened:
    """B keys' next events, up to T each, and what the model made of them."""

    y: NDArray[np.float32]  # (B,T,O)
    offsets: Whole  # (B,T)
    times_ms: Whole  # (B,T) event times
    lengths: NDArray[Any]  # (B,) at least 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known after them."""

    states: dict[str, NDArray[Any]]  # the tensors by name: (B,*dims)
    abouts: Whole | None = None  # (B,T) offset of the event that each one's y describes, -1: none
    about_ms: Whole | None = None  # (B,T) its time


class Session:
    """Keeps the newest answer of a key and the time of the event that it is about."""

    def __init__(self, outputs: int) -> None:
        self.states: tuple[StateSpec, ...] = (
            own_state(ANSWER, (outputs,)),
            own_state(ANSWER_MS, (), "int64"),
        )

    def run(self, happened: Happened, _before: Tensors) -> Kept:
        """Take the next events."""
        rows, last = np.arange(len(happened.y)), np.asarray(happened.lengths) - 1
        return Kept({ANSWER: happened.y[rows, last], ANSWER_MS: happened.times_ms[rows, last]})


class Late:
    """Keeps the last `delay` events of a key: offsets and times, the oldest first."""

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self.states: tuple[StateSpec, ...] = (
            own_state(LATE_OFFSETS, (delay,), "int64", -1),
            own_state(LATE_MS, (delay,), "int64"),
        )

    def run(self, happened: Happened, before: Tensors) -> Kept:
        """Take the next events; each is an answer about the one that came `delay` before it."""
        # The events left in a row's ring are those before the end of its own events.
        ring = np.asarray(happened.lengths)[:, None] + np.arange(self._delay)
        offsets = np.concatenate([before[LATE_OFFSETS], happened.offsets], axis=1)
        times_ms = np.concatenate([before[LATE_MS], happened.times_ms], axis=1)
        steps = happened.offsets.shape[1]
        return Kept(
            {
                LATE_OFFSETS: np.take_along_axis(offsets, ring, axis=1),
                LATE_MS: np.take_along_axis(times_ms, ring, axis=1),
            },
            offsets[:, :steps],
            times_ms[:, :steps],
        )


def check(outputs: OutputSpec, events: EventSpec, text: Text | None) -> None:
    """Refuse answers that the events cannot give; `text`: theirs, if a symbol is a step.

    Raises SpecError.
    """
    if outputs.read == "every":
        numbers = 0 if text is None else len(outputs.names) * (text.max_symbols + 1)
        if text is None or numbers > MOST_EVERY:
            raise SpecError(
                f"outputs.read = 'every': expected a text, a step for each symbol, and at most "
                f"{MOST_EVERY:,} numbers an event, got "
                f"{'events of one step' if text is None else f'{numbers:,}: lower max_symbols'}"
            )
    if outputs.delay and text is not None:
        raise SpecError("outputs.delay: expected events of one step, got texts")
    if outputs.answers == "session" and not events.ends:
        raise SpecError(
            "outputs.answers = 'session': expected events.end_field, reset_after_ms or "
            "tombstone = 'reset', got none: no session would ever end"
        )


def keeper_of(outputs: OutputSpec) -> Session | Late | None:
    """Return what keeps it for a bundle's outputs; None: predictions describe their own event."""
    if outputs.answers == "session":
        return Session(len(outputs.names))
    return Late(outputs.delay) if outputs.delay else None
