"""What keyfold-verify knows of handovers: whose predictions a partition's output topic must hold.

Owns an own reading of the record of handovers and of what other groups owe, on purpose apart from
worker/handover/ownership.py and store.py, which wrote it. Pure but for read_seams. Called by
verification.py, asked by compare.py and dead_letters.py.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from redis.exceptions import NoPermissionError, RedisError

from keyfold.worker.errors import Crash
from keyfold.worker.verify.stored import INHERITED, folded_below

NOBODY = ""  # who owes an event's prediction where a group waits for outputs that no group has


@dataclass(frozen=True, slots=True)
class Other:
    """Another group on the same topics."""

    first: int  # it owes a prediction of every event from here on
    due: int  # and below here, as far as they are its own
    bundle: str  # whose predictions they are
    formers: tuple[tuple[str, int], ...] = ()  # (bundle, offset): below it they are that one's


@dataclass(frozen=True, slots=True)
class Seams:
    """Whose prediction each event's is."""

    group: str = ""  # that is verified
    first: str = ""  # who had the outputs before the first seam; "": nothing was handed over
    at: tuple[tuple[int, str], ...] = ()  # from this offset on they are this group's
    waits: bool = False  # nothing was handed over yet, and the verified group waits for it
    # Those of which Redis has a state; NOBODY: what the verified group folds and no group predicts.
    others: Mapping[str, Other] = field(default_factory=dict)
    letters: Container[int] = ()  # offsets that a dead letter is about, whoever wrote it

    def owner(self, offset: int) -> str:
        """Return the group whose prediction an event's is, "" when nobody can tell."""
        if not self.at:
            return NOBODY if self.waits else self.group
        group = self.first
        for begin, then in self.at:
            if begin <= offset:
                group = then
        return group

    def mine(self, offset: int) -> bool:
        """Say whether an event's prediction is the verified group's."""
        return self.owner(offset) == self.group

    def owed_by_others(self, offset: int) -> bool:
        """Say whether another group must have predicted this event by now."""
        other = self.others.get(self.owner(offset))
        return (
            other is not None and other.first <= offset < other.due and offset not in self.letters
        )

    def has_rule(self, offset: int) -> bool:
        """Say whether another group's states show that it does not emit every prediction."""
        other = self.others.get(self.owner(offset))
        return other is not None and "+" in other.bundle

    def foreign(self, offset: int, bundle: str) -> bool:
        """Say whether a bundle is another one than its group's, as far as Redis knows that."""
        other = self.others.get(self.owner(offset))
        if other is None or any(bundle == one and offset < upto for one, upto in other.formers):
            return False
        # Behind a + stands the id of the rule by which that group emits.
        return other.bundle.partition("+")[0] != bundle


def read_seams(
    redis: Any, group: str, topics: tuple[str, str], partition: int, letters: Container[int]
) -> Seams:
    """Read what was agreed about a partition; `topics` are input and output. Raises Crash."""
    source, output = topics
    name = f"keyfold-handover:{{{source}:{output}:{partition}}}"
    try:
        text = cast("bytes | None", redis.get(name))
        if text is None:
            return Seams(group)
        record = json.loads(text)
        at = tuple((int(seam["offset"]), str(seam["group"])) for seam in record["seams"])
        first, waiting = str(record["first"]), record["waiting"]
        names = {first, *(name for _, name in at)} - {"", group}
        waits = not at and group in waiting
        if waits and not _others_serve(redis, source, partition, waiting):
            names = {NOBODY}
        found = {name: _other(redis, f"{{{name or group}:{source}:{partition}}}") for name in names}
    except RedisError as error:
        raise Crash(f"Redis: {name}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Crash(f"{name}: expected a record of handovers, got {error!r}") from error
    others = {name: other for name, other in found.items() if other is not None}
    return Seams(group, first, at, waits, others, letters)


def _others_serve(redis: Any, source: str, partition: int, waiting: Container[str]) -> bool:
    """Say whether Redis has a state of a group that does not wait, or may have one."""
    end = f":{source}:{partition}}}"
    try:
        for name in redis.scan_iter(match=f"{{*{end}", count=1000):
            if name.decode().removeprefix("{").removesuffix(end) not in waiting:
                return True
    except NoPermissionError:
        return True  # nothing to go by
    return False


def _other(redis: Any, name: str) -> Other | None:
    fields = ("#B", "#F", "#W", "#C", "#M", INHERITED)
    base, floor, watermark, committed, bundle, inherited = (
        (value or b"").decode() for value in redis.hmget(name, *fields)
    )
    if not watermark:
        return None
    first, due = max(int(base), int(floor or 0)), max(int(watermark), int(committed or 0))
    return Other(first, due, bundle, folded_below(inherited))
