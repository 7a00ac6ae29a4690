"""How deep a JSON text is nested is told in one pass, whatever a record consists of."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from keyfold.export.events import Decoder, EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.nesting import MAX_NESTING, is_nested_too_deeply

OPEN = b"[" * (MAX_NESTING + 1)  # from so many on a text is looked at
HOSTILE: dict[str, Callable[[int], bytes]] = {
    "escaped quotes without an end": lambda n: OPEN + b'"' + b'\\"' * (n // 2),
    "backslashes": lambda n: OPEN + b'"' + b"\\" * (n | 1),
    "quotes": lambda n: OPEN + b'"' * n,
    "a text without an end": lambda n: OPEN + b'"' + b"x" * n,
    "brackets": lambda n: b"[" * n,
}


def taken_s(value: bytes) -> float:
    """Return the processor time of decoding a record that is none, the best of three."""
    decoder = Decoder(EventSpec(), FeatureSpec.numbers("a"))
    times = []
    for _ in range(3):
        begun = time.process_time()
        assert decoder.decode([value], [0]).rejects
        times.append(time.process_time() - begun)
        if times[-1] > 1:  # too long for noise to matter
            break
    return min(times)


@pytest.mark.parametrize("name", HOSTILE)
def test_ten_times_the_bytes_cost_about_ten_times_the_time(name: str) -> None:
    before_s = taken_s(HOSTILE[name](10_000))
    for size in (100_000, 1_000_000):  # in steps: what is quadratic fails before it takes an hour
        now_s = taken_s(HOSTILE[name](size))
        assert now_s < 40 * before_s + 0.02
        before_s = now_s


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b'{"t":"' + b"[" * 500 + b'"}', False),
        (b'{"t":"\\"' + b"[" * 500 + b'"}', False),
        (b'{"t":"\\\\","u":' + OPEN + b'""' + b"]" * len(OPEN) + b"}", True),
        (b'{"":' + OPEN + b"]" * len(OPEN) + b"}", True),
        (b'{"t":"' + b"\\u005b" * 100 + b'","u":' + OPEN[2:] + b"]" * 199 + b"}", False),
        (b'{"t":"\xc3\xa9' + b"\\n" * 300 + b'","u":' + OPEN[1:] + b"]" * 200 + b"}", True),
    ],
)
def test_brackets_in_texts_do_not_count_and_those_behind_do(text: bytes, deep: bool) -> None:
    assert is_nested_too_deeply(text) is deep
