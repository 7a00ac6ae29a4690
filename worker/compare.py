"""Compares what a worker has put out for one partition with the offline fold of that partition.

Owns the rules of lost, duplicate, conflicting, out of order, cross-key, wrong and unexpected
predictions. It reads a prediction's JSON by itself, without the encoder that wrote it. Pure:
records come as plain values, no topic is read here. Called by worker/verify.py and by tests.
"""

from __future__ import annotations

from array import array
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from keyfold.export.bundle import Bundle
from keyfold.worker.findings import Fault, Findings
from keyfold.worker.refold import Expected, Kind, Refold

MEMBERS = {"id", "about", "key", "key_b64", "time", "output", "steps", "cold", "bundle"}
UNSEEN, RIGHT, WRONG = 0, 1, 2
KEYS_NAMED = 100  # of events without a prediction, per partition
Difference = tuple[str, str]  # expected, got


@dataclass(frozen=True, slots=True)
class Place:
    """The partition under comparison."""

    input: str  # topic of events
    output: str  # topic of predictions
    partition: int  # of both
    base: int  # first offset that was ever folded
    watermark: int  # all events below it must have been predicted


class Strays:
    """Predictions found in another partition than their event's: misplaced, hence not lost."""

    def __init__(self) -> None:
        self.found: set[tuple[int, int]] = set()  # partition and offset of the event
        # Offsets only, and no objects: when a whole topic is missing there are many.
        self._missing: list[tuple[Place, dict[int, str], array[int]]] = []

    def missing(self, place: Place, refold: Refold, offsets: array[int]) -> None:
        """Note events without a prediction in their own partition."""
        if offsets:
            keys = {o: _key_at(refold, o) for o in offsets[:KEYS_NAMED]}
            self._missing.append((place, keys, offsets))

    def report(self, findings: Findings) -> None:
        """Report what is missing and did not turn up in another partition."""
        for place, keys, offsets in self._missing:
            for offset in offsets:
                if (place.partition, offset) not in self.found:
                    key = keys.get(offset, "")
                    where = f"{place.input}:{place.partition}:{offset}"
                    findings.add(Fault.LOST, where, f"a prediction{key}", "none")


class OutputCheck:
    """Takes one output partition's records in order, then says what is missing."""

    def __init__(
        self, bundle: Bundle, place: Place, refold: Refold, findings: Findings, strays: Strays
    ) -> None:
        self._bundle_id = bundle.id  # not for nothing: each call hashes the manifest
        self._place, self._refold = place, refold
        self._findings, self._strays = findings, strays
        self._tolerance = bundle.manifest.tolerance * bundle.golden.scale()
        self._names = bundle.manifest.outputs.names
        self._classifies = bundle.manifest.outputs.kind == "classification"
        self._seen = bytearray(len(refold))  # per input record
        self._digests = array("q", bytes(8 * len(refold)))  # of the first prediction
        self._latest = array("q", [-1]) * len(refold.keys)  # per key: latest predicted offset

    def prediction(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Take the output record at `offset`."""
        findings, place = self._findings, self._place
        findings.predictions += 1
        where = f"{place.output}:{place.partition}:{offset}"
        members = _parse(value)
        if members is None:
            findings.add(Fault.UNEXPECTED, where, "a prediction", "no JSON object")
            return
        event = self._event(members, where)
        if event is None:
            return
        position = self._refold.position(event)
        if position is None or self._refold.kind(position) is not Kind.EVENT:
            what = "no record" if position is None else f"a {self._kind(position)}"
            got = f"a prediction at {where}"
            findings.add(Fault.UNEXPECTED, self._input(event), f"none: {what}", got)
            return
        expected = self._refold.expected(position)
        key_is_right = self._key_is_right(expected, event, key, members, where)
        difference = self._difference(expected, event, members)
        right, digest = key_is_right and difference is None, hash(value)
        if self._seen[position] != UNSEEN:
            same = self._digests[position] == digest
            if same or (right and self._seen[position] == RIGHT):
                # Another grouping of the same events may change the last bits of a float: within
                # the tolerance a repetition says the same thing, even if not in the same bytes.
                findings.add(Fault.DUPLICATE, self._input(event), "once", f"again at {where}")
            else:
                want, got = difference or ("the same prediction again", "another one")
                findings.add(Fault.CONFLICT, self._input(event), want, f"{got} at {where}")
            return
        self._seen[position] = RIGHT if right else WRONG
        self._digests[position] = digest
        self._in_order(expected, event, where)
        if difference is not None:
            got = f"{difference[1]} at {where}"
            findings.add(Fault.WRONG_OUTPUT, self._input(event), difference[0], got)

    def finish(self) -> None:
        """Count the partition's records and note events below the watermark without prediction."""
        findings, refold = self._findings, self._refold
        findings.events += refold.events
        findings.rejects += len(refold.rejects)
        findings.resets += len(refold) - refold.events - len(refold.rejects)
        missing = array("q")
        for position, seen in enumerate(self._seen):
            if seen == UNSEEN and refold.kind(position) is Kind.EVENT:
                offset = refold.offset(position)
                if offset < self._place.watermark:
                    missing.append(offset)
        self._strays.missing(self._place, refold, missing)

    def _event(self, members: Mapping[str, Any], where: str) -> int | None:
        """Return the offset of the event that a prediction's id names, if it is to be checked."""
        place = self._place
        topic, partition, offset, index = _split_id(members.get("id"))
        if topic != place.input or index != 0:
            got = f"id {members.get('id')!r}"
            form = f"an id {place.input}:{place.partition}:OFFSET:0"
            self._findings.add(Fault.UNEXPECTED, where, form, got)
            return None
        if partition != place.partition:
            self._strays.found.add((partition, offset))
            self._findings.add(
                Fault.CROSS_KEY,
                f"{place.input}:{partition}:{offset}",
                f"a prediction in partition {partition}",
                f"at {where}",
            )
            return None
        if offset < place.base:
            self._findings.before_base += 1
            return None
        return offset

    def _in_order(self, expected: Expected, event: int, where: str) -> None:
        latest = self._latest[expected.key_number]
        if event < latest:
            wanted = f"before the prediction for offset {latest}, of the same key"
            self._findings.add(Fault.ORDER, self._input(event), wanted, f"after it, at {where}")
        else:
            self._latest[expected.key_number] = event

    def _key_is_right(
        self,
        expected: Expected,
        event: int,
        key: bytes | None,
        members: Mapping[str, Any],
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
            Fault.CROSS_KEY, self._input(event), f"key {show_key(expected.key)}", got
        )
        return False

    def _difference(
        self, expected: Expected, event: int, members: Mapping[str, Any]
    ) -> Difference | None:
        """Return the first difference between a prediction and the offline one."""
        exact = (
            ("about", self._input(event)),
            ("time", expected.time_ms),
            ("steps", expected.steps),
            ("cold", expected.steps == 1),
            ("bundle", self._bundle_id),
        )
        for name, wanted in exact:
            got = members.get(name)
            if type(got) is not type(wanted) or got != wanted:
                return f"{name} {wanted!r}", f"{name} {got!r}"
        unknown = members.keys() - MEMBERS
        if unknown:
            return "no further members", ", ".join(sorted(unknown))
        return self._output_difference(expected.output, members.get("output"))

    def _output_difference(self, wanted: Sequence[float], output: Any) -> Difference | None:
        numbers = self._numbers(output)
        if numbers is None:
            return f"an output of {', '.join(self._names)}", "another form"
        for name, want, got in zip(self._names, wanted, numbers, strict=True):
            gap = abs(got - want)
            self._findings.max_abs_difference = max(self._findings.max_abs_difference, gap)
            if not gap <= self._tolerance:
                return f"{name} {want!r} within {self._tolerance:.2g}", repr(got)
        if self._classifies:
            best = self._names[numbers.index(max(numbers))]
            # Of equal probabilities any may give the label.
            if numbers[self._names.index(output["label"])] != max(numbers):
                return f"label {best!r}", f"label {output['label']!r}"
        return None

    def _numbers(self, output: Any) -> list[float] | None:
        """Return an output's O numbers, or None when it has another form."""
        if not isinstance(output, dict):
            return None
        if self._classifies:
            numbers = output.get("probabilities")
            if output.keys() != {"label", "probabilities"} or output["label"] not in self._names:
                return None
        else:
            if output.keys() != set(self._names):
                return None
            numbers = [output[name] for name in self._names]
        if not isinstance(numbers, list) or len(numbers) != len(self._names):
            return None
        if not all(type(number) in (int, float) for number in numbers):
            return None
        # The text is the shortest that reads back as the same float32.
        return array("f", numbers).tolist()

    def _input(self, event: int) -> str:
        return f"{self._place.input}:{self._place.partition}:{event}"

    def _kind(self, position: int) -> str:
        return self._refold.kind(position).name.lower()


def _key_at(refold: Refold, offset: int) -> str:
    position = refold.position(offset)
    return "" if position is None else f" for key {show_key(refold.expected(position).key)}"


def key_member(key: bytes) -> tuple[str, str]:
    """Return the name and text of the JSON member that shows a key."""
    try:
        return "key", key.decode()
    except UnicodeDecodeError:
        return "key_b64", b64encode(key).decode()


def show_key(key: bytes | None) -> str:
    """Return a key as a person can read it."""
    return "null" if key is None else repr(key)[1:]


def _parse(value: bytes | None) -> dict[str, Any] | None:
    try:
        members = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return members if isinstance(members, dict) else None


def _split_id(text: Any) -> tuple[str, int, int, int]:
    try:
        topic, partition, offset, index = text.split(":")
        return topic, int(partition), int(offset), int(index)
    except (AttributeError, ValueError):
        return "", -1, -1, -1
