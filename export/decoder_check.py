"""The contract test of a decoder hook, for the people who write one.

Owns what a hook must keep to (see hook.py), as one function for their own tests:

    from keyfold.export.decoder_check import check_decoder
    def test_decoder():
        check_decoder(my_package.decode, [b"...a record of every sort...", b"...a broken one..."])

Knows no Kafka and no models. Called by users, and by keyfold-worker check for a sample record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keyfold.export.errors import Crash, Reject
from keyfold.export.hook import Hook, as_json

CUTS = 16  # broken copies made of each sample


class DecoderError(Crash):
    """A decoder hook does not keep its contract."""


def check_decoder(hook: Hook, samples: Sequence[bytes]) -> int:
    """Call `hook` with samples and with broken copies of them; return how many samples are events.

    Raises DecoderError, naming the sample by its number: something else than a mapping that JSON
    can hold, another error than ValueError or Reject, another event for the same bytes, or no
    sample at all that is an event.
    """
    good = 0
    for number, sample in enumerate(samples):
        event = _called(hook, sample, f"sample {number}")
        good += event is not None
        if event != _called(hook, sample, f"sample {number}, again"):
            raise DecoderError(
                f"sample {number}: expected the same event for the same bytes, got another; a "
                "decoder may depend on nothing but the bytes"
            )
        for what, broken in _broken(sample):
            _called(hook, broken, f"sample {number}, {what}")
    if not good:
        raise DecoderError(f"expected an event of at least one sample, got none of {len(samples)}")
    return good


def _broken(sample: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    step = max(1, len(sample) // CUTS)
    for length in range(step, len(sample), step):
        yield f"cut to {length} bytes", sample[:length]
        turned = bytes([sample[length] ^ 0xFF])
        yield f"byte {length} inverted", sample[:length] + turned + sample[length + 1 :]


def _called(hook: Hook, value: bytes, what: str) -> bytes | None:
    """Return the event as JSON, None if the hook refused the record as it should."""
    try:
        event: Any = hook(value)
    except (ValueError, Reject):
        return None
    except Exception as error:
        # The seam to code that is not ours: whatever else it raises is what is looked for here.
        raise DecoderError(
            f"{what}: expected a mapping or ValueError, got {type(error).__name__}"
        ) from error
    if not isinstance(event, Mapping):
        raise DecoderError(f"{what}: expected a mapping, got {type(event).__name__}")
    try:
        return as_json(lambda _: event)(value)
    except Reject as error:
        raise DecoderError(f"{what}: expected what JSON can hold, got something else") from error
