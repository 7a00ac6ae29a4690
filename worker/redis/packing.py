"""Connections that write their commands in C.

Owns nothing but that: redis-py's asynchronous connections (8.1) build each command in Python, one
argument after the other, though hiredis, which reads the replies, writes commands too. A save has
two arguments for each state. Called by client.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool

LINE_END = b"\r\n"


@dataclass(frozen=True, slots=True)
class Written:
    """Arguments of a command in the form in which they are sent; they come last of all."""

    count: int  # of arguments
    data: bytes  # bulk strings


class _PackedInC:
    """Goes before a connection class."""

    def pack_command(self, *arguments: Any) -> list[bytes]:
        """Write one command; its name may be two words."""
        name, *rest = arguments
        words = name.split() if isinstance(name, bytes) else name.encode().split()
        if not rest or not isinstance(rest[-1], Written):
            return [hiredis.pack_command((*words, *rest))]
        written = rest.pop()
        packed = hiredis.pack_command((*words, *rest))
        count = len(words) + len(rest) + written.count
        return [b"*%d" % count + packed[packed.index(LINE_END) :], written.data]


def pack_in_c(pool: ConnectionPool) -> None:
    """Have the connections that a pool will open write commands in C."""
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_PackedInC, kind), {})
