"""The contract test that users run on their decoder hooks finds what breaks the contract.

Needs no service.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest

from keyfold.export.decoder_check import DecoderError, check_decoder
from keyfold.export.errors import Reject

SAMPLE = struct.pack("<df", 1.5, 2.5)
_numbers = itertools.count()


def good(value: bytes) -> dict[str, Any]:
    """Read a double and a float."""
    if len(value) != 12:
        raise ValueError(f"expected 12 bytes, got {len(value)}")
    time, temp = struct.unpack("<df", value)
    return {"time": time, "readings": {"temp": temp}}


def careful(value: bytes) -> dict[str, Any]:
    """Refuse with a reason that may be shown."""
    if len(value) != 12:
        raise Reject("the frame is cut off")
    return good(value)


def raises_its_own_error(value: bytes) -> dict[str, Any]:
    """Let struct.error out, which is no ValueError."""
    return {"a": struct.unpack("<df", value)[0]}


def returns_a_list(value: bytes) -> Any:
    """Return something else than a mapping."""
    return list(value)


def returns_an_object(value: bytes) -> Any:
    """Return what JSON cannot hold."""
    return {"a": object()}


def counts(value: bytes) -> Any:
    """Depend on how often it was called."""
    return {"a": next(_numbers)}


def refuses_all(value: bytes) -> Any:
    """Know no event."""
    raise ValueError(value)


@pytest.mark.parametrize("hook", [good, careful])
def test_hook_that_keeps_the_contract_passes(hook: Callable[[bytes], Any]) -> None:
    assert check_decoder(hook, [SAMPLE, b"broken", SAMPLE]) == 2


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (raises_its_own_error, "sample 0, empty: expected a mapping or ValueError, got error"),
        (returns_a_list, "sample 0: expected a mapping, got list"),
        (returns_an_object, "sample 0: expected what JSON can hold, got something else"),
        (counts, "sample 0: expected the same event for the same bytes, got another"),
        (refuses_all, "expected an event of at least one sample, got none of 1"),
    ],
)
def test_hook_that_breaks_the_contract_is_told_where(
    hook: Callable[[bytes], Any], message: str
) -> None:
    with pytest.raises(DecoderError, match=message):
        check_decoder(hook, [SAMPLE])
