"""Reads one prediction's JSON and compares it with the offline one.

Owns the oracle's own reading of a prediction, without the encoder that wrote it: members, key, id;
the member "output" is output_reading.py's. It judges one prediction by itself; what several
of them make (lost, duplicate, out of order) is in compare.py, which calls it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.findings import Findings
from keyfold.worker.verify.lost import Gap
from keyfold.worker.verify.offline_answers import ANY, Told
from keyfold.worker.verify.output_reading import OutputReading
from keyfold.worker.verify.repeated import event_digest, event_text

MEMBERS = {
    "id",
    "about",
    "key",
    "key_b64",
    "time",
    "output",
    "steps",
    "cold",
    "bundle",
    "gap",
    "last",
}
Difference = tuple[str, str]  # expected, got
Members = Mapping[str, Any]


class Reading:
    """Judges predictions of one bundle."""

    def __init__(self, bundle: Bundle, findings: Findings) -> None:
        self._bundle_id = bundle.id  # not for nothing: each call hashes the manifest
        self._output = OutputReading(bundle, findings)

    def difference(
        self, told: Told, at: Callable[[int], str], members: Members
    ) -> Difference | None:
        """Return the first difference between a prediction and the offline one.

        `at` names a record by its offset.
        """
        expected = told.expected
        exact: list[tuple[str, Any]] = [("bundle", self._bundle_id)]
        if told.about != ANY:
            exact = [("about", at(told.about)), ("time", expected.time_ms), *exact]
        steps: Any = members.get("steps")
        if expected.known:
            exact.append(("steps", expected.steps))
        elif type(steps) is not int or steps < 1:
            return "steps of 1 or more", f"steps {steps!r}"
        exact.append(("cold", steps == 1))
        for name, wanted in exact:
            got = members.get(name)
            if type(got) is not type(wanted) or got != wanted:
                return f"{name} {wanted!r}", f"{name} {got!r}"
        unknown = members.keys() - (MEMBERS | {"event"} if expected.event else MEMBERS)
        if unknown:
            return "no further members", ", ".join(sorted(unknown))
        if expected.event and event_digest(members.get("event", b"")) != expected.event:
            return "event: the record's own members (worker.passthrough)", "another event"
        last = members.get("last", False)
        if told.last is not None and (last is not told.last or ("last" in members) != told.last):
            return f"last {told.last}", f"last {last!r}" if "last" in members else "no last"
        wrong_gap = _gap_difference(expected.gap, members)
        if wrong_gap is not None or expected.known:
            return wrong_gap or self._output.difference(expected, members.get("output"))
        return self._output.form_difference(members.get("output"))

    def repeats(self, first: Members, members: Members) -> bool:
        """Say whether a prediction says the same as the first one with its id did."""
        return first.get("steps") == members.get("steps") and self._output.repeats(
            first.get("output"), members.get("output")
        )


def _gap_difference(expected: Gap, members: Members) -> Difference | None:
    """Compare the member "gap": true and the last one where lost events may be missing."""
    if "gap" not in members:
        return ("gap True", "no gap") if expected is Gap.ALWAYS else None
    if expected is Gap.NEVER:
        return "no gap: no event before it is lost", f"gap {members['gap']!r}"
    if members["gap"] is not True:
        return "gap True", f"gap {members['gap']!r}"
    last = list(members)[-1]
    return None if last == "gap" else ("gap as the last member", f"{last} behind it")


def parse(value: bytes | None) -> dict[str, Any] | None:
    """Return a prediction's members, "event" as text; None: it is no JSON object."""
    try:
        members = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    if not isinstance(members, dict):
        return None
    if "event" in members:
        members["event"] = event_text(value or b"")
    return members


def split_id(text: Any) -> tuple[str, int, int, int]:
    """Return an id's topic, partition, offset and index; ("", -1, -1, -1): it is none."""
    try:
        topic, partition, offset, index = text.split(":")
        return topic, int(partition), int(offset), int(index)
    except (AttributeError, ValueError):
        return "", -1, -1, -1


def key_member(key: bytes) -> tuple[str, str]:
    """Return the name and text of the JSON member that shows a key."""
    try:
        return "key", key.decode()
    except UnicodeDecodeError:
        return "key_b64", b64encode(key).decode()


def show_key(key: bytes | None) -> str:
    """Return a key as a person can read it."""
    return "null" if key is None else repr(key)[1:]
