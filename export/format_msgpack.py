"""Events as MessagePack: a map with the members that a JSON object would have.

Owns how it is read and written and how deeply it may be nested; types are as strict as JSON's, and
texts, numbers, booleans and nil mean the same. Called by formats.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from keyfold.export.errors import Reject
from keyfold.export.formats import decode_one, json_text
from keyfold.export.nesting import MAX_NESTING

# Bytes that may begin a map or an array; within numbers and texts they mean nothing.
CONTAINERS = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
# First byte -> bytes behind it of what has a fixed size, or of what says the size (and how many
# more): https://github.com/msgpack/msgpack/blob/master/spec.md
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
          0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
          0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # bytes of N; items: N or 2 N


class MessagePack:
    """A map; see formats.Format."""

    name = "MessagePack"
    shallow = MAX_NESTING  # a container takes a byte

    def __init__(self) -> None:
        self._event = msgspec.msgpack.Decoder(dict[str, Any]).decode

    def decoder(self, row: Any) -> Callable[[bytes], Any]:
        """See Format."""
        return msgspec.msgpack.Decoder(row).decode

    def is_too_deep(self, value: bytes) -> bool:
        """See Format."""
        if len(value) - len(value.translate(None, CONTAINERS)) <= MAX_NESTING:
            return False
        return _is_too_deep(value)

    def to_json(self, value: bytes) -> bytes:
        """See Format."""
        return json_text(decode_one(self._event, value, self))

    def of_json(self, event: bytes) -> bytes:
        """See Format."""
        try:
            return msgspec.msgpack.encode(orjson.loads(event))
        except (orjson.JSONDecodeError, msgspec.MsgspecError, ValueError) as error:
            raise Reject(f"the event is not valid JSON: {error}") from error


def _is_too_deep(value: bytes) -> bool:
    """Go along the bytes, without a stack of calls; what is broken off is as deep as it came."""
    left, at = [1], 0  # items still to come, by depth
    while at < len(value):
        while left and left[-1] == 0:
            left.pop()
        if not left:
            break
        left[-1] -= 1
        length, items = _item(value, at)
        at += length
        if items is not None:
            if len(left) > MAX_NESTING:
                return True
            left.append(items)
    return False


def _item(value: bytes, at: int) -> tuple[int, int | None]:
    """Return how many bytes an item's head and payload take; of a container, how many it holds."""
    first = value[at]
    if 0x80 <= first < 0xA0:
        return 1, (first & 0x0F) * (1 if first >= 0x90 else 2)
    if 0xA0 <= first < 0xC0:
        return 1 + (first & 0x1F), None
    if first in _SIZED:
        width, more = _SIZED[first]
        return 1 + width + more + int.from_bytes(value[at + 1 : at + 1 + width]), None
    if first in _COUNTED:
        width, each = _COUNTED[first]
        return 1 + width, each * int.from_bytes(value[at + 1 : at + 1 + width])
    return 1 + _FIXED.get(first, 0), None
