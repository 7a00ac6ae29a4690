"""Compares what a worker has put out for one partition with the offline fold of that partition.

Owns the rules of lost, duplicate, conflicting, out of order, cross-key, wrong and unexpected
predictions, and which of them cannot be judged any more (prediction.py reads a single one).
Pure: records come as plain values, no topic is read here. Called by verification.py and by
tests.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.offline_emit import Due
from keyfold.worker.verify.prediction import Members, Reading, key_member, parse, show_key, split_id
from keyfold.worker.verify.refold import Expected, Refold
from keyfold.worker.verify.seams import Seams

UNSEEN, RIGHT, WRONG = 0, 1, 2
KEYS_NAMED = 100  # of events without a prediction, per partition


@dataclass(frozen=True, slots=True)
class Place:
    """The partition under comparison."""

    input: str  # topic of events
    output: str  # topic of predictions
    partition: int  # of both
    base: int  # first offset that was ever folded
    watermark: int  # stored states are the fold of the events below it
    floor: int = 0  # outputs about offsets below it are neither required nor compared
    committed: int = 0  # outputs about offsets below it are in transactions that have ended
    start: int = 0  # records below it are gone: outputs about them cannot be compared
    resets: int = 0  # of the outputs, by an operator: each may emit every prediction once more
    seams: Seams = field(default_factory=Seams)  # whose predictions the output topic holds
    alerts: bool = False  # `output` is the topic of alerts

    @property
    def due(self) -> int:
        """All events below this offset must have been predicted, but for those below the floor."""
        return max(self.watermark, self.committed)

    def owes(self, offset: int) -> bool:
        """Say whether an event must have been predicted by now, by whomever.

        Unless a rule says that it was not to be emitted.
        """
        if self.seams.mine(offset):
            return self.floor <= offset < self.due
        return self.seams.owed_by_others(offset)

    def at(self, offset: int) -> str:
        """Name a record of the input."""
        return f"{self.input}:{self.partition}:{offset}"


class Strays:
    """Predictions found in another partition than their event's: misplaced, hence not lost."""

    def __init__(self) -> None:
        # Partition and offset of the event, index among the predictions that it causes.
        self.found: set[tuple[int, int, int]] = set()
        # Offsets and indexes only, no objects: when a whole topic is missing there are many.
        self._missing: list[tuple[Place, dict[int, str], array[int], array[int]]] = []

    def missing(self, place: Place, refold: Refold, numbers: array[int]) -> None:
        """Note predictions, by their numbers in the book, that their own partition has not."""
        book = refold.book
        if numbers:
            offsets = array("q", map(book.cause, numbers))
            indexes = array("i", map(book.index, numbers))
            keys = {o: _key_at(refold, o) for o in offsets[:KEYS_NAMED]}
            self._missing.append((place, keys, offsets, indexes))

    def report(self, findings: Findings) -> None:
        """Report what is missing and did not turn up in another partition."""
        for place, keys, offsets, indexes in self._missing:
            for offset, index in zip(offsets, indexes, strict=True):
                if (place.partition, offset, index) not in self.found:
                    key = keys.get(offset, "")
                    where = place.at(offset)
                    findings.add(Fault.LOST, where, f"a prediction{key}", "none")


class OutputCheck:
    """Takes one output partition's records in order, then says what is missing."""

    def __init__(
        self, bundle: Bundle, place: Place, refold: Refold, findings: Findings, strays: Strays
    ) -> None:
        self._bundle = bundle.id
        self._readings: dict[tuple[str, float], Reading] = {}  # by bundle and tolerance
        self._place, self._refold = place, refold
        self._findings, self._strays = findings, strays
        self._book = refold.book
        self._seen = bytearray(len(self._book))  # per prediction that there may be
        self._digests = array("q", bytes(8 * len(self._book)))  # of the first one found
        self._latest = array("q", [-1]) * len(refold.keys)  # per key: latest number found
        self._firsts: dict[int, Members] = {}  # position -> first prediction, where not derivable
        self._repeated: dict[int, int] = {}  # position -> repetitions, after a reset of outputs
        self._furthest = -1  # highest offset predicted so far

    def prediction(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Take the output record at `offset`."""
        findings, place = self._findings, self._place
        if place.alerts:
            findings.alerts += 1
        else:
            findings.predictions += 1
        where = f"{place.output}:{place.partition}:{offset}"
        members = parse(value)
        if members is None:
            findings.add(Fault.UNEXPECTED, where, "a prediction", "no JSON object")
            return
        id_ = self._event(members, where)
        if id_ is None:
            return
        event, index = id_
        position = self._find(event, index, members)
        if not place.seams.mine(event):
            self._of_another_group(position, event, members, where)
            return
        why_none = self._why_none(position, event)
        if position is None or why_none:
            got = f"a prediction at {where}"
            findings.add(Fault.UNEXPECTED, place.at(event), f"none: {why_none}", got)
            return
        told = self._book.told(position)
        expected = told.expected
        key_is_right = self._key_is_right(expected, event, key, members, where)
        difference = self._reading(position).difference(told, place.at, members)
        verdict = RIGHT if key_is_right and difference is None else WRONG
        if self._seen[position] != UNSEEN:
            if self._repeats(position, verdict, members, value):
                self._duplicate(position, where)
            else:
                want, got = difference or ("the same prediction again", "another one")
                findings.add(Fault.CONFLICT, place.at(event), want, f"{got} at {where}")
            return
        self._seen[position] = verdict
        self._digests[position] = hash(value)
        self._in_order(expected, position, where)
        if not expected.known:
            self._firsts[position] = members
            findings.unverifiable += 1
        if difference is not None:
            got = f"{difference[1]} at {where}"
            findings.add(Fault.WRONG_OUTPUT, place.at(event), difference[0], got)

    def _find(self, event: int, index: int, members: Members) -> int | None:
        """Return the number of a prediction; the first one found says how its answer goes on."""
        position = self._book.find(event, index)
        if position is not None and self._seen[position] == UNSEEN:
            self._book.follow(position, members.get("output"))
        return position

    def _of_another_group(
        self, position: int | None, event: int, members: Members, where: str
    ) -> None:
        """Take a prediction that another group owes: it must be there once, and in order."""
        findings, place = self._findings, self._place
        findings.others += 1
        if position is None or not self._book.holds(position):
            return  # what is an event is its bundle's word
        if members.get("bundle") == self._bundle and place.seams.foreign(event, self._bundle):
            owner = place.seams.owner(event)
            got = f"one of bundle {self._bundle} at {where}"
            findings.add(Fault.UNEXPECTED, place.at(event), f"group {owner}'s prediction", got)
        elif self._seen[position] == UNSEEN:
            self._seen[position], self._digests[position] = RIGHT, _claims(members)
            self._in_order(self._book.told(position).expected, position, where)
        elif self._digests[position] == _claims(members):
            self._duplicate(position, where)
        else:
            want = "the same prediction again"
            findings.add(Fault.CONFLICT, place.at(event), want, f"another one at {where}")

    def _reading(self, position: int) -> Reading:
        """Return who judges an event's prediction: the bundle that folded it."""
        bundle = self._refold.judge_at(position)
        name = bundle.id, bundle.manifest.tolerance
        if name not in self._readings:
            self._readings[name] = Reading(bundle, self._findings)
        return self._readings[name]

    def finish(self) -> None:
        """Count the partition's records and note the events that must have a prediction."""
        if not self._place.alerts:
            self._count()
        self._note_missing()

    def _count(self) -> None:
        findings, refold = self._findings, self._refold
        findings.events += refold.events
        findings.rejects += len(refold.rejects)
        findings.resets += len(refold) - refold.events - len(refold.rejects)
        findings.expired += refold.expired
        findings.lost_records += refold.skipped
        findings.pending += refold.pending

    def _note_missing(self) -> None:
        refold, place = self._refold, self._place
        missing = array("q")
        for position, seen in enumerate(self._seen):
            if seen == UNSEEN and self._book.holds(position):
                offset = self._book.cause(position)
                if place.owes(offset) and self._is_required(position, offset):
                    missing.append(position)
        self._strays.missing(place, refold, missing)

    def _repeats(self, position: int, verdict: int, members: Members, value: bytes | None) -> bool:
        """Say whether a prediction repeats the first one with its id."""
        if self._digests[position] == hash(value):
            return True
        # Another grouping of the same events may change the last bits of a float: within the
        # tolerance a repetition says the same thing, even if not in the same bytes.
        first = self._firsts.get(position)
        reading = self._reading(position)
        same = first is None or reading.repeats(first, members)
        return same and verdict == self._seen[position] == RIGHT

    def _duplicate(self, position: int, where: str) -> None:
        place, offset = self._place, self._book.cause(position)
        repeats = self._repeated.get(position, 0) + 1
        if place.resets:
            self._repeated[position] = repeats
        if repeats <= place.resets:
            self._findings.repeated_by_reset += 1  # that is what an operator's reset asks for
        else:
            self._findings.add(Fault.DUPLICATE, place.at(offset), "once", f"again at {where}")

    def _event(self, members: Members, where: str) -> tuple[int, int] | None:
        """Return offset and index of the id that a prediction names, if it is to be checked."""
        place = self._place
        topic, partition, offset, index = split_id(members.get("id"))
        if topic != place.input or index < 0 or (index and self._refold.is_straight):
            got = f"id {members.get('id')!r}"
            last = "0" if self._refold.is_straight else "INDEX"
            form = f"an id {place.input}:{place.partition}:OFFSET:{last}"
            self._findings.add(Fault.UNEXPECTED, where, form, got)
            return None
        if partition != place.partition:
            self._strays.found.add((partition, offset, index))
            self._findings.add(
                Fault.CROSS_KEY,
                f"{place.input}:{partition}:{offset}",
                f"a prediction in partition {partition}",
                f"at {where}",
            )
            return None
        return (offset, index) if self._is_comparable(offset, where) else None

    def _is_comparable(self, offset: int, where: str) -> bool:
        """Say whether an event can be compared; count and check what is left of it otherwise."""
        place, findings, lost = self._place, self._findings, self._refold.lost
        if offset < place.base:
            findings.before_base += 1
        elif offset < place.floor:
            findings.below_floor += 1
        elif lost.holds(offset):
            # It may have been predicted, but not saved, before it was lost.
            findings.unverifiable += 1
            if findings.exactly_once and self._furthest >= lost.following(offset):
                what = "none: its event was lost, and the stream has gone on behind it"
                findings.add(Fault.UNEXPECTED, place.at(offset), what, f"a prediction at {where}")
        elif offset < place.start:
            findings.unverifiable += 1
        else:
            self._furthest = max(self._furthest, offset)
            return True
        return False

    def _in_order(self, expected: Expected, number: int, where: str) -> None:
        latest = self._latest[expected.key_number]
        if number < latest:
            first = self._place.at(self._book.cause(number))
            wanted = f"before the prediction for offset {self._book.cause(latest)}, of the same key"
            self._findings.add(Fault.ORDER, first, wanted, f"after it, at {where}")
        else:
            self._latest[expected.key_number] = number

    def _key_is_right(
        self,
        expected: Expected,
        event: int,
        key: bytes | None,
        members: Members,
        where: str,
    ) -> bool:
        name, text = key_member(expected.key)
        other = "key" if name == "key_b64" else "key_b64"
        if key == expected.key and members.get(name) == text and other not in members:
            return True
        if key != expected.key:
            got = f"record key {show_key(key)} at {where}"
        else:
            got = f"member {name} {members.get(name)!r} at {where}"
        self._findings.add(
            Fault.CROSS_KEY, self._place.at(event), f"key {show_key(expected.key)}", got
        )
        return False

    def _due(self, position: int) -> Due:
        """Say whether the rule of what is emitted wants an event's prediction in this topic."""
        return self._book.due(position, alert=self._place.alerts)

    def _is_required(self, position: int, offset: int) -> bool:
        """Say whether a missing prediction is missed, by the rule of whoever owes it."""
        if self._place.seams.mine(offset):
            return self._due(position) is Due.MUST
        # By which rule another group emits nobody knows here: where we have one, so may it.
        return self._refold.rule is None and not self._place.seams.has_rule(offset)

    def _why_none(self, position: int | None, event: int) -> str:
        """Say why no prediction may stand here, "" where one may."""
        refold, record = self._refold, self._refold.position(event)
        if record is None:
            return "no record"
        kind = refold.kind(record)
        if position is None or not self._book.holds(position):
            return f"a {kind.name.lower()}" + ("" if refold.is_straight else " with fewer answers")
        if self._due(position) is not Due.NO:
            return ""
        return "no alert" if refold.rule is None else refold.rule.said(alert=self._place.alerts)


def _claims(members: Members) -> int:
    """Return a digest of all that a prediction says but its numbers, which its own group checks."""
    return hash(tuple(sorted((k, repr(v)) for k, v in members.items() if k != "output")))


def _key_at(refold: Refold, offset: int) -> str:
    number = refold.book.find(offset, 0)
    return "" if number is None else f" for key {show_key(refold.book.told(number).expected.key)}"
