"""Connections that write their commands in C.

Owns nothing but that: redis-py's asynchronous connections (8.1) build each command in Python, one
argument after the other, though hiredis, which reads the replies, writes commands too. A save has
two arguments for each state. Called by client.py.
"""

from __future__ import annotations

from typing import Any

import hiredis
from redis.asyncio import ConnectionPool


class _PackedInC:
    """Goes before a connection class."""

    def pack_command(self, *arguments: Any) -> list[bytes]:
        """Write one command; its name may be two words."""
        name, *rest = arguments
        words = name.split() if isinstance(name, bytes) else name.encode().split()
        return [hiredis.pack_command((*words, *rest))]


def pack_in_c(pool: ConnectionPool) -> None:
    """Have the connections that a pool will open write commands in C."""
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_PackedInC, kind), {})
