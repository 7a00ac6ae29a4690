"""Which predictions a partition's records must have led to, where that is not one of each event.

Owns the oracle's own reading of sessions, look-ahead and answers at every symbol: which predictions
there must be, under which ids, about which events. It shares nothing with worker/caused.py, which
the worker runs; what a key's state keeps for them is offline_kept.py's. Where the log's
beginning is gone, it may not be known whether a record ended a session: then only the form and the
number of its predictions are held. Filled in by refold.py, read by compare.py.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from keyfold.export.outputs import OutputSpec
from keyfold.worker.verify.folded import Expected, KeyState, Kind
from keyfold.worker.verify.lost import Gap
from keyfold.worker.verify.offline_emit import Due
from keyfold.worker.verify.offline_generation import Said
from keyfold.worker.verify.offline_key import UNJUDGED, Event, Stepped

SAID = 2  # numbers of an answer's symbol: which it is, and its probability
ANY = -1  # in place of an offset: it is not known


class Book(Protocol):
    """The predictions that are expected of one partition, in their order."""

    def __len__(self) -> int:
        """How many there may be."""
        ...

    def find(self, offset: int, index: int) -> int | None:
        """Return the number of the one with this id; None: there is none."""
        ...

    def cause(self, number: int) -> int:
        """Return the offset of the record that causes it."""
        ...

    def index(self, number: int) -> int:
        """Return which one of its cause's it is."""
        ...

    def follow(self, number: int, output: Any) -> None:
        """Take the first output found of a number, where several are right: the rest follows."""
        ...

    def holds(self, number: int) -> bool:
        """Say whether there is a prediction of this number, whatever a rule lets out."""
        ...

    def due(self, number: int, *, alert: bool = False) -> Due:
        """Say whether it has to be in the output topic, or the alert one."""
        ...

    def told(self, number: int) -> Told:
        """Return what it must say."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What one prediction must say."""

    expected: Expected  # of the event that it describes
    about: int  # offset of that event; ANY
    index: int = 0  # among its cause's
    last: bool | None = False  # whether it says that it is its cause's last one; None: either


@dataclass(frozen=True, slots=True)
class Described:
    """An event that a prediction describes, and what is said of it."""

    about: int  # its offset; ANY
    time_ms: int  # its time
    steps: int  # of the key at it
    # (O,); blank where it is not known; of an answer's symbol its number and its probability
    y: Sequence[float]
    gap: Gap  # whether it says that events may be missing
    known: bool  # steps and y follow from the records
    since: int = 0  # who folded when the key was cold last
    text: str | None = None  # of a symbol that ends an answer: what the answer spells


class Answers:
    """The predictions of one partition: columns, one entry for each."""

    def __init__(self, outputs: int, keys: list[bytes], names: Sequence[str] = ()) -> None:
        self._width, self._keys, self._names = outputs, keys, names
        self._causes, self._indexes, self._lasts = array("q"), array("i"), array("b")
        self._abouts, self._times, self._steps = array("q"), array("q"), array("q")
        self._key_numbers, self._since = array("i"), array("i")
        self._outputs, self._gaps, self._known = array("f"), array("b"), array("b")
        self._dues, self._events = array("b"), array("q")
        self._texts: dict[int, str] = {}
        self._paths: dict[int, list[Said]] = {}  # by number of an answer's first: all that is left

    def __len__(self) -> int:
        return len(self._causes)

    def add(
        self, cause: int, key: int, described: Sequence[Described], *, last: bool = True,
        event: int = 0, surely: int | None = None,
    ) -> None:  # fmt: skip
        """Note what a record causes, in order; it is the last of all records so far.

        `last`: whether they say which is the last. `event`: digest of what they repeat. `surely`:
        only the first so many are sure to be there, and which they are is open.
        """
        for index, one in enumerate(described):
            self._causes.append(cause)
            self._indexes.append(index)
            self._lasts.append(last and index + 1 == len(described))
            self._abouts.append(one.about)
            self._times.append(one.time_ms)
            self._steps.append(one.steps)
            if one.text is not None:
                self._texts[len(self._key_numbers)] = one.text
            self._key_numbers.append(key)
            self._since.append(one.since)
            self._outputs.extend(one.y)
            self._gaps.append(one.gap)
            self._known.append(one.known)
            self._dues.append(Due.MUST if surely is None or index < surely else Due.MAY)
            self._events.append(event)
            if surely is not None:
                self._lasts[-1] = ANY

    def find(self, offset: int, index: int) -> int | None:
        """Return the number of the prediction with this id; None: there is none."""
        number = bisect_left(self._causes, offset) + index
        if index < 0 or number >= len(self) or self._causes[number] != offset:
            return None
        return number

    def cause(self, number: int) -> int:
        """Return the offset of the record that causes it."""
        return self._causes[number]

    def index(self, number: int) -> int:
        """Return which one of its cause's it is."""
        return self._indexes[number]

    def may_say(self, paths: list[Said], count: int) -> None:
        """Take that the latest `count` predictions are the first of these answers, or another."""
        first = len(self) - count
        if len(paths) > 1:
            self._paths[first] = paths
        self._write(first, paths[0])

    def follow(self, number: int, output: Any) -> None:
        """Leave only the answers that say the symbol of this output there, if any does."""
        index = self._indexes[number]
        first = number - index
        if first not in self._paths or not isinstance(output, dict):
            return
        left = [
            said
            for said in self._paths[first]
            if index < len(said.symbols)
            and self._names[said.symbols[index]] == output.get("symbol")
        ]
        if left:
            self._paths[first] = left
            self._write(first, left[0])

    def _write(self, first: int, said: Said) -> None:
        last = len(said.symbols) - 1
        number, cause = first, self._causes[first]
        while number < len(self) and self._causes[number] == cause:
            index = number - first
            self._dues[number] = Due.MUST if index <= last else Due.NO
            self._lasts[number] = index == last
            self._texts.pop(number, None)
            if index <= last:
                both = said.symbols[index], said.probabilities[index]
                self._outputs[number * SAID : (number + 1) * SAID] = array("f", both)
            if index == last:
                self._texts[number] = said.text
            number += 1

    def holds(self, number: int) -> bool:
        """Say whether there is one of this number: of answers that differ one may be longer."""
        return self._dues[number] != Due.NO

    def due(self, number: int, *, alert: bool = False) -> Due:
        """Say whether it has to be there; there are no alerts."""
        return Due.NO if alert else Due(self._dues[number])

    def told(self, number: int) -> Told:
        """Return what it must say."""
        key, last = self._key_numbers[number], self._lasts[number]
        y = self._outputs[number * self._width : (number + 1) * self._width].tolist()
        expected = Expected(
            self._keys[key], key, self._times[number], self._steps[number], y, [], UNJUDGED,
            self._events[number], Gap(self._gaps[number]), bool(self._known[number]),
            self._texts.get(number),
        )  # fmt: skip
        about = self._abouts[number]
        return Told(expected, about, self._indexes[number], None if last == ANY else bool(last))

    def since(self, number: int) -> int:
        """Return who folded when its key was cold last."""
        return self._since[number]


@dataclass(frozen=True, slots=True)
class _Ending:
    """A session that a record ends, or may end."""

    state: KeyState | None  # of the key at its end; None: nothing of it is known
    gap: Gap = Gap.MAYBE  # what its prediction says


class Answering:
    """What the records of a partition cause, gathered while they are folded."""

    def __init__(self, outputs: OutputSpec, keys: list[bytes]) -> None:
        """Begin; `keys` by number, may grow."""
        width = len(outputs.names) if outputs.generate is None else SAID
        self._outputs, self._blank = outputs, [0.0] * width
        self.answers = None if outputs.is_straight else Answers(width, keys, outputs.names)
        self._endings: list[_Ending] = []  # of the present record
        self._described: list[Described] = []  # what it lets be answered
        self._surely: int | None = None  # see Answers.add
        self._paths: list[Said] = []  # what it may be answered, where that is more than one
        self._unanswered = 0  # events behind a look-ahead that never came

    @property
    def has_any(self) -> bool:
        """Whether the present record causes a prediction."""
        return bool(self._endings or self._described)

    def ends(self, state: KeyState, end: int) -> None:
        """Take the state of a key that starts anew; `end`: of the last lost range before that."""
        self._unanswered += min(self._outputs.delay, state.steps)
        if self._outputs.answers == "session":
            gap = Gap.ALWAYS if state.offset < end else state.gap
            self._endings.append(_Ending(state, gap))

    def may_end(self) -> None:
        """Take that a key may have started anew, which the log no longer tells."""
        if self._outputs.answers == "session":
            self._endings.append(_Ending(None))

    def stepped(self, event: Event, state: KeyState, stepped: Stepped) -> None:
        """Take an event; `state` is the one behind it, with the tensors before it."""
        outputs, rest = self._outputs, (state.gap, state.known, state.since)
        if outputs.generate is not None:
            self._said(event, state, stepped, outputs.generate.most)
            return
        if outputs.read == "every":
            each = [y.tolist() for y in stepped.each or ()] or [self._blank] * len(event.x)
            place = event.offset, state.time_ms, state.steps
            self._described = [Described(*place, y, *rest) for y in each]
        elif outputs.delay and not state.known:
            # It may have had more steps than are known.
            self._surely = 0 if state.steps <= outputs.delay else None
            self._described = [Described(ANY, ANY, 0, self._blank, *rest)]
        elif outputs.delay and state.steps > outputs.delay:
            about, time_ms = (int(ring[0, 0]) for ring in state.tensors[-2:])
            steps = state.steps - outputs.delay
            self._described = [Described(about, time_ms, steps, stepped.y.tolist(), *rest)]

    def _said(self, event: Event, state: KeyState, stepped: Stepped, most: int) -> None:
        """Take the symbols that answer an event."""
        place, rest = (event.offset, state.time_ms, state.steps), (state.known, state.since)
        if not stepped.said:
            # From an unknown state, or of too many answers that may be right, one symbol is sure,
            # and as many as are allowed may be.
            self._surely = 1
            blank = Described(*place, self._blank, state.gap, known=False, since=state.since)
            self._described = [blank] * most
            return
        longest = max(len(said.symbols) for said in stepped.said)
        self._described = [Described(*place, self._blank, state.gap, *rest)] * longest
        self._paths = stepped.said

    def tell(self, offset: int, key: int, event: int) -> None:
        """Note the predictions of the record at `offset`; `event`: digest of what they repeat."""
        described, surely = self._described, self._surely
        if self._endings:
            described, surely = self._sessions()
        self._endings, self._described, self._surely = [], [], None
        if self.answers is not None:
            several = self._outputs.delay == 0
            self.answers.add(offset, key, described, last=several, event=event, surely=surely)
            if self._paths:
                self.answers.may_say(self._paths, len(described))
        self._paths = []

    def pending(self, states: Iterable[KeyState]) -> int:
        """Return how many events have no answer, with what is left of all keys."""
        if self._outputs.answers == "session":
            return sum(state.steps for state in states)
        return self._unanswered + sum(min(self._outputs.delay, one.steps) for one in states)

    def _sessions(self) -> tuple[list[Described], int | None]:
        """Return what the sessions that a record ends are answered, and how many are sure.

        None: all, and what they say is known.
        """
        # Without a step there was no session; unless it may have had some that nobody knows of.
        sure = [one for one in self._endings if one.state is not None and one.state.steps]
        maybe = [one for one in self._endings if one.state is None or not one.state.known]
        most = [one for one in self._endings if one in sure or one in maybe]
        if len(sure) < len(most):
            nothing = Described(ANY, ANY, 0, self._blank, Gap.MAYBE, known=False)
            return [nothing] * len(most), len(sure)
        return [self._session(one) for one in sure], None

    def _session(self, ending: _Ending) -> Described:
        state = ending.state
        if state is None:
            raise RuntimeError("expected the state of a session that has ended, got none")
        y = state.tensors[-2][0].tolist() if state.known else self._blank
        return Described(
            state.offset, state.answered_ms, state.steps, y, ending.gap, state.known, state.since
        )


class Refolded(Protocol):
    """What is asked of a partition where each event causes one prediction."""

    def __len__(self) -> int:
        """How many records there are."""
        ...

    def position(self, offset: int) -> int | None:
        """Return the number of the record at `offset`."""
        ...

    def offset(self, position: int) -> int:
        """Return the offset of a record."""
        ...

    def kind(self, position: int) -> Kind:
        """Say what it is."""
        ...

    def due(self, position: int, *, alert: bool = False) -> Due:
        """Say whether its prediction has to be there."""
        ...

    def expected(self, position: int) -> Expected:
        """Return what must have been predicted for it."""
        ...


class EventByEvent:
    """The predictions of a partition where each event causes one, about itself."""

    def __init__(self, refold: Refolded) -> None:
        self._refold = refold

    def __len__(self) -> int:
        return len(self._refold)

    def find(self, offset: int, index: int) -> int | None:
        """Return the number of the record with this id; None: there is none."""
        return self._refold.position(offset) if index == 0 else None

    def cause(self, number: int) -> int:
        """Return its offset."""
        return self._refold.offset(number)

    def index(self, number: int) -> int:
        """Return that it is its cause's first."""
        return 0

    def follow(self, number: int, output: Any) -> None:
        """Do nothing: of each there is one."""

    def holds(self, number: int) -> bool:
        """Say whether it is an event."""
        return self._refold.kind(number) is Kind.EVENT

    def due(self, number: int, *, alert: bool = False) -> Due:
        """Say whether its prediction has to be there."""
        return self._refold.due(number, alert=alert)

    def told(self, number: int) -> Told:
        """Return what it must say."""
        return Told(self._refold.expected(number), self._refold.offset(number))
