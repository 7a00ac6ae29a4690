"""Members of an event that its prediction repeats (worker.passthrough).

Owns cutting them out of the record and where they stand in the prediction. Each is repeated as the
JSON text that it was, without the spaces: 1.10 stays 1.10, and an integer keeps all its digits.
They are data for whoever reads predictions and change nothing in the fold: an event without them is
still one. An event's producer decides how large they are, and one prediction that fits no request
would end every worker that takes its partition: so there is an end to their size. Called by
worker/pipeline.py, only where members are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import orjson

from keyfold.export.formats import Format
from keyfold.export.outputs import OutputSpec
from keyfold.export.settings import SettingsError
from keyfold.worker.errors import Reject

MOST_BYTES = 64 * 1024  # of the member "event"; a larger one is null
MOST_BYTES_OF_SEVERAL = 1024  # where one event causes thousands of predictions that repeat it
GAP = b',"gap":true}'  # of a prediction whose key may have lost events: the last member
ABSENT = msgspec.Raw(b"")


def check_fits(paths: Sequence[str], outputs: OutputSpec) -> None:
    """Raise SettingsError where predictions are about other events than those that cause them."""
    if paths and outputs.describes_others:
        what = "sessions" if outputs.answers == "session" else "look-ahead"
        raise SettingsError(
            f"worker.passthrough: expected none with a bundle of {what}, got {', '.join(paths)}: "
            "what would be repeated is the event that causes a prediction, not the one it is about"
        )


class Passthrough:
    """Adds the members at some paths to predictions."""

    def __init__(self, paths: Sequence[str], form: Format, *, often: bool = False) -> None:
        """`often`: an event causes a prediction for each symbol."""
        self._most = MOST_BYTES_OF_SEVERAL if often else MOST_BYTES
        routes = [(path, *path.split(".")) for path in paths]
        # Of an event: the members of that very name, and those that others may be nested in.
        own = list(dict.fromkeys(name for path, head, *_ in routes for name in (path, head)))
        self._event = _texts_of(own)
        self._places = [
            (own.index(path), own.index(head), [_texts_of([name]) for name in inner])
            for path, head, *inner in routes
        ]
        names = [orjson.dumps(path).replace(b"%", b"%%") + b":%b" for path in paths]
        self._form = b"{" + b",".join(names) + b"}"
        self._json = form.to_json

    def added(self, payloads: Sequence[bytes], values: Sequence[bytes | None]) -> list[bytes]:
        """Return predictions with the member "event" of the records that caused them."""
        return [
            _with(payload, self._members(value))
            for payload, value in zip(payloads, values, strict=True)
        ]

    def _members(self, value: bytes | None) -> bytes:
        """Return the members as a JSON object; null where they cannot be read or are too large."""
        try:
            event = self._json(value or b"")
            if not event.isascii():
                event.decode()  # no UTF-8: what is cut out is not looked at otherwise
            own = self._event(event)
            found = [
                own[place] or (_nested(own[head], inner) if inner else ABSENT) or b"null"
                for place, head, inner in self._places
            ]
            text = msgspec.json.format(self._form % tuple(found), indent=-1)  # without the spaces
            orjson.loads(text)  # 1e999 is JSON, but few can read it
        except (msgspec.MsgspecError, UnicodeDecodeError, orjson.JSONDecodeError, Reject):
            return b"null"
        return text if len(text) <= self._most else b"null"


def _texts_of(names: Sequence[str]) -> Callable[[bytes | msgspec.Raw], tuple[msgspec.Raw, ...]]:
    """Return the function from an object's JSON to its members' JSON; ABSENT: it has no such one.

    It raises MsgspecError for what is no object.
    """
    attributes: Any = [(f"c{number}", msgspec.Raw, ABSENT) for number in range(len(names))]
    rename = {f"c{number}": name for number, name in enumerate(names)}
    decode: Any = msgspec.json.Decoder(msgspec.defstruct("Row", attributes, rename=rename)).decode
    astuple: Any = msgspec.structs.astuple
    return lambda text: astuple(decode(text))


def _nested(
    text: msgspec.Raw, inner: Sequence[Callable[[msgspec.Raw], tuple[msgspec.Raw, ...]]]
) -> msgspec.Raw:
    """Return the JSON of what is in an object's JSON, one step after the other, if it is."""
    for step in inner:
        try:
            (text,) = step(text)
        except msgspec.MsgspecError:  # no object, or nothing
            return ABSENT
    return text


def _with(payload: bytes, members: bytes) -> bytes:
    ending = GAP if payload.endswith(GAP) else b"}"
    return payload.removesuffix(ending) + b',"event":' + members + ending
