"""Commands written in C: the same bytes as redis-py writes."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from keyfold.worker.redis.packing import Written, pack_in_c


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://h:1/0", Connection),
        ("rediss://h:1/0", SSLConnection),
        ("unix:///a/b", UnixDomainSocketConnection),
    ],
)
def test_each_kind_of_connection_stays_what_it_is(url: str, kind: type[Connection]) -> None:
    pool = ConnectionPool.from_url(url)
    pack_in_c(pool)
    made = pool.connection_class(**pool.connection_kwargs)
    assert isinstance(made, kind)
    assert made.pack_command("PING") == [b"*1\r\n$4\r\nPING\r\n"]


@pytest.mark.parametrize(
    "command",
    [
        ("HMGET", "{g:t:0}", "#N", "#T"),
        ("EVALSHA", "a" * 40, 1, b"{g:t:0}", 0, -5, 2**62, b"", b":k\r\n\0", b"v" * 100_000),
        ("CONFIG GET", "maxmemory"),
        (b"CLIENT SETNAME", "keyfold é"),
        ("SET", "k", 1.5),
        ("AUTH", "name", ""),
    ],
)
def test_a_command_is_byte_for_byte_redis_py_s(command: tuple[Any, ...]) -> None:
    pool = ConnectionPool.from_url("redis://h:1/0")
    theirs = b"".join(pool.connection_class().pack_command(*command))
    pack_in_c(pool)
    assert b"".join(pool.connection_class().pack_command(*command)) == theirs


def test_arguments_written_already_come_last() -> None:
    pool = ConnectionPool.from_url("redis://h:1/0")
    pack_in_c(pool)
    connection: Any = pool.connection_class()
    plain = connection.pack_command("EVALSHA", "sha", 1, "k", b"f", b"v")
    written = Written(2, b"$1\r\nf\r\n$1\r\nv\r\n")
    assert b"".join(connection.pack_command("EVALSHA", "sha", 1, "k", written)) == b"".join(plain)
    nothing = connection.pack_command("EVALSHA", "sha", 1, "k", Written(0, b""))
    assert b"".join(nothing) == b"".join(connection.pack_command("EVALSHA", "sha", 1, "k"))
