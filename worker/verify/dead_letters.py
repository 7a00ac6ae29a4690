"""Compares the dead-letter topic with the rejects of the offline fold.

Owns how a dead letter is read back (headers, original key and value) and when one will do. Pure:
it reads no topic and shares nothing with the code that wrote the dead letters. Called by
verification.py and by tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from keyfold.worker.verify.compare import Place
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.refold import NOT_FINITE, Refold, Rejected, record_digest


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic, as far as it is compared."""

    where: str  # its own topic:partition:offset
    reason: str  # keyfold-reason
    bundle: str  # keyfold-bundle
    digest: int  # record_digest() of its key and value
    truncated: str  # keyfold-truncated: the value's original size in bytes, if it was cut


def check_dead_letters(
    place: Place,
    refold: Refold,
    letters: Mapping[int, Sequence[DeadLetter]],
    findings: Findings,
) -> None:
    """Compare a partition's dead letters, by the offset they are about, with its rejects."""
    for offset, about in letters.items():
        findings.dead_letters += len(about)
        if not _is_checked(place, refold, offset, len(about), findings):
            continue
        if offset not in refold.rejects:
            for letter in about:
                got = f"a dead letter at {letter.where}"
                want = "no dead letter: it is no reject"
                findings.add(Fault.UNEXPECTED, place.at(offset), want, got)
    for offset, rejected in refold.rejects.items():
        if place.seams.mine(offset) and place.owes(offset):
            got = _letter_problem(refold.bundle_at(offset).id, rejected, letters.get(offset, ()))
            if got:
                want = f"a dead letter: {rejected.reason}"
                findings.add(Fault.LOST, place.at(offset), want, got)


def _is_checked(place: Place, refold: Refold, offset: int, count: int, findings: Findings) -> bool:
    """Say whether dead letters about an offset can be judged; count them otherwise."""
    if offset < place.base:
        findings.before_base += count
    elif offset < place.floor:
        findings.below_floor += count
    elif not place.seams.mine(offset):
        findings.others += count
    elif offset < place.start or refold.lost.holds(offset):
        findings.unverifiable += count
    else:
        return True
    return False


def _letter_problem(bundle: str, rejected: Rejected, letters: Iterable[DeadLetter]) -> str:
    """Return why none of a reject's dead letters will do; the empty text when one does."""
    # Why a step failed has no fixed words.
    free = rejected.reason == NOT_FINITE
    problem = "none"
    for letter in letters:
        if letter.truncated:
            # A value too large for the topic: nothing is left to compare but its size.
            altered = letter.truncated != str(rejected.size)
        else:
            altered = letter.digest != rejected.digest
        if altered:
            problem = f"another key or value at {letter.where}"
        elif letter.bundle != bundle:
            problem = f"keyfold-bundle {letter.bundle!r} at {letter.where}"
        elif not letter.reason or not (free or letter.reason == rejected.reason):
            problem = f"keyfold-reason {letter.reason!r} at {letter.where}"
        else:
            return ""
    return problem


def parse_dead_letter(
    where: str,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
) -> tuple[str, int, int, DeadLetter] | None:
    """Return the topic, partition and offset a dead letter is about, and it; None: malformed."""
    found = {name: (text or b"").decode(errors="replace") for name, text in headers}
    try:
        topic = found["keyfold-topic"]
        partition, offset = int(found["keyfold-partition"]), int(found["keyfold-offset"])
        reason, bundle = found["keyfold-reason"], found["keyfold-bundle"]
    except (KeyError, ValueError):
        return None
    digest, truncated = record_digest(key, value), found.get("keyfold-truncated", "")
    return topic, partition, offset, DeadLetter(where, reason, bundle, digest, truncated)
