"""Rejects offline must stand in the dead-letter topic, with the right headers and bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import make_tiny_bundle
from verify_case import POISON, Case, make_case, only

from keyfold.worker.verify.dead_letters import parse_dead_letter
from keyfold.worker.verify.findings import Fault


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(make_tiny_bundle(tmp_path))


def test_a_missing_dead_letter_is_lost(case: Case) -> None:
    case.served.letters.clear()
    where, expected, got = only(case.verify(), Fault.LOST)
    assert (where, got) == (f"in:2:{POISON}", "none")
    assert expected.startswith("a dead letter: the record's value is not valid JSON")


@pytest.mark.parametrize(
    ("header", "text"),
    [("keyfold-bundle", b"another"), ("keyfold-reason", b""), ("keyfold-reason", b"because")],
)
def test_a_dead_letter_with_a_wrong_header_will_not_do(
    case: Case, header: str, text: bytes
) -> None:
    key, value, headers = case.served.letters[0]
    case.served.letters[0] = (key, value, list({**dict(headers), header: text}.items()))
    assert header in only(case.verify(), Fault.LOST)[2]


@pytest.mark.parametrize("original", [(b"k2", b"{"), (b"k3", b"{}"), (b"k3", None)])
def test_a_dead_letter_without_the_original_bytes_will_not_do(
    case: Case, original: tuple[bytes, bytes | None]
) -> None:
    assert case.served.letters[0][:2] == (b"k3", b"{")
    case.served.letters[0] = (*original, case.served.letters[0][2])
    assert only(case.verify(), Fault.LOST)[2].startswith("another key or value")


def test_a_right_dead_letter_beside_a_wrong_one_will_do(case: Case) -> None:
    key, _, headers = case.served.letters[0]
    case.served.letters.insert(0, (key, b"", headers))
    assert not case.verify().counts


def test_a_value_too_large_for_the_topic_may_be_cut_if_its_size_is_told(case: Case) -> None:
    key, _, headers = case.served.letters[0]
    case.served.letters[0] = (key, b"", [*headers, ("keyfold-truncated", b"1")])
    assert not case.verify().counts
    case.served.letters[0] = (key, b"", [*headers, ("keyfold-truncated", b"2")])
    only(case.verify(), Fault.LOST)


def test_a_dead_letter_of_an_event_is_found(case: Case) -> None:
    key, value, headers = case.served.letters[0]
    other = list({**dict(headers), "keyfold-offset": b"23"}.items())
    case.served.letters.append((key, value, other))
    assert only(case.verify(), Fault.UNEXPECTED)[0] == "in:2:23"


@pytest.mark.parametrize("missing", range(5))
def test_a_dead_letter_needs_all_headers(case: Case, missing: int) -> None:
    key, value, headers = case.served.letters[0]
    del headers[missing]
    assert parse_dead_letter("in.rejects:0:0", key, value, headers) is None
