"""The questions of keyfold-worker check, one after the other, and how their answers are shown.

Owns the order, what is not asked because something it needs is missing, and that a question which
fails hides no other. It knows nothing of Kafka, Redis or bundles. Called by cli.py; the
questions are in the modules beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from confluent_kafka import KafkaException
from redis.exceptions import RedisError

from keyfold.worker.columns import wrapped
from keyfold.worker.errors import Crash, Reject

Level = Literal["ok", "WARN", "FAIL", "skip"]
T = TypeVar("T")
LABEL = 10  # columns of a question's name


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level  # FAIL: a worker would not serve, or not rightly
    text: str  # what was found and, unless it is ok, what to do


@dataclass(frozen=True, slots=True)
class Question:
    """Something to look at."""

    name: str  # in the report
    ask: Callable[[], Iterator[Finding]]  # may raise Crash, RedisError, KafkaException, OSError
    needs: Sequence[str] = ()  # names of questions that must have been answered before


class Missing(Exception):
    """What the question is about is not there, and has been said; what needs it is not asked."""


def said(error: KafkaException) -> str:
    """Return what a broker or its client has said, with the name of the error."""
    reason = error.args[0]
    return f"{reason.str().strip().rstrip(':')} ({reason.name()})"


def ok(text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding("ok", text)


def warn(text: str) -> Finding:
    """Return a finding that a person should know."""
    return Finding("WARN", text)


def fail(text: str) -> Finding:
    """Return a finding that must be set right."""
    return Finding("FAIL", text)


def within(call: Callable[[], T], seconds: float) -> T | None:
    """Return what a call returns, None when that takes too long; it then goes on unheeded."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return found[0] if found else None


def ask_all(questions: Sequence[Question], show: Callable[[str], None]) -> dict[Level, int]:
    """Ask every question and show each finding at once. Returns how many of each level."""
    counts: dict[Level, int] = {"ok": 0, "WARN": 0, "FAIL": 0, "skip": 0}
    unanswered: set[str] = set()
    for question in questions:
        missing = [name for name in question.needs if name in unanswered]
        if missing:
            unanswered.add(question.name)
            found = iter([Finding("skip", f"not looked at: needs {missing[0]}")])
        else:
            found = _answers(question, unanswered)
        for finding in found:
            counts[finding.level] += 1
            head = f"{finding.level:<5} {question.name:<{LABEL}}"
            for line in wrapped(head, finding.text):
                show(line)
    return counts


def _answers(question: Question, unanswered: set[str]) -> Iterator[Finding]:
    try:
        yield from question.ask()
        return
    except Missing:
        unanswered.add(question.name)
        return
    except KafkaException as error:
        text = said(error)
    except (Crash, Reject, RedisError, OSError) as error:
        text = str(error) or type(error).__name__
    except Exception as error:  # noqa: BLE001 - the seam: one question must not hide the others
        text = f"keyfold's own fault, please report it: {type(error).__name__}: {error}"
    unanswered.add(question.name)
    yield fail(text)
