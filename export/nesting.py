"""How deeply a JSON text may be nested: one fixed limit instead of the caller's stack.

Owns the limit and its check. Called by decode and by whoever parses the same records.
"""

from __future__ import annotations

import re

# Beyond this the decoder's own limit is near, which depends on the caller's stack.
MAX_NESTING = 200
# Possessive, and the closing quote may be missing: a text is passed once, so that a record of
# escaped quotes without an end costs what its length does and not that squared. No decoder enters
# what stands behind a quote that nothing closes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def is_nested_too_deeply(value: bytes) -> bool:
    """Say whether arrays and objects of a JSON text stand more than MAX_NESTING deep."""
    if len(value) <= 2 * MAX_NESTING:
        return False
    if value.count(b"[") + value.count(b"{") <= MAX_NESTING:
        return False
    depth = deepest = 0
    for byte in _STRING.sub(b"", value):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest > MAX_NESTING
