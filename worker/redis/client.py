"""Connects to the Redis of redis.url, whichever form it has; and scripts that run on all forms.

Owns how connections behave: a command waits for one, has a time limit and is not repeated here.
Knows no names or layout. Called by worker/store.py, and by the operator tools (connect_sync).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    NoScriptError,
    RedisClusterException,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from keyfold.worker.errors import RedisRefuses
from keyfold.worker.redis.door import why_shut_out
from keyfold.worker.redis.packing import pack_in_c
from keyfold.worker.redis.route import SENTINEL_TIMEOUT_S, ClusterRedis, Routed, SentinelRedis
from keyfold.worker.redis.url import Access, Place, parse_url, problem_with_url, without_password

__all__ = [
    "Access",
    "Script",
    "connect",
    "connect_sync",
    "primaries",
    "problem_with_url",
    "without_password",
]

MAX_CONNECTIONS = 32  # to one server
MAX_SENTINEL_CONNECTIONS = 1
SYNC_RETRIES = 3


def connect(redis: Access | str, timeout_s: float) -> Redis:
    """Return a client; connections open on first use. Raises ValueError on a wrong URL.

    All keys of one command must share a hash tag. Over Sentinels and on a cluster there are no
    pipelines, and a command fails with a ConnectionError while there is no primary: try again.
    """
    access = Access.of(redis)
    place, tls = parse_url(access), access.tls

    def server(one: str) -> Redis:
        return _server(one, timeout_s, **tls)

    def primary(one: str) -> Redis:
        return _server(one, timeout_s, redis_connect_func=_refuse_replica, **tls)

    def sentinel(one: str) -> Redis:
        limit_s = min(timeout_s, SENTINEL_TIMEOUT_S)
        return _server(one, limit_s, max_connections=MAX_SENTINEL_CONNECTIONS, **tls)

    if place.kind == "sentinel":
        return SentinelRedis(place, primary, sentinel)
    return ClusterRedis(place, server) if place.kind == "cluster" else server(access.whole_url)


def _server(url: str, timeout_s: float, **more: Any) -> Redis:
    options = {
        "max_connections": MAX_CONNECTIONS,
        "timeout": None,  # a command waits for a connection
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        **more,
    }
    pool = BlockingConnectionPool.from_url(url, **options)
    pack_in_c(pool)
    return Redis.from_pool(pool)


async def _refuse_replica(connection: AbstractConnection) -> None:
    """Greet a server and refuse one that is no primary: reads from it would be old."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role = await connection.read_response()
    if role[0] not in (b"master", "master"):
        raise ConnectionError("a server that was a primary is a replica now")


async def primaries(client: Redis) -> list[Redis]:
    """Return a client for each server that holds states, to ask each for its settings.

    They belong to `client`, which closes them.
    """
    return await client.primaries() if isinstance(client, Routed) else [client]


class Script:
    """A Lua script on keys of one hash tag: by its digest, in full where that is not known.

    Unlike redis-py's it does not load the script onto every node of a cluster first, which fails
    while any of them is away.
    """

    def __init__(self, client: Redis, text: str) -> None:
        """Prepare a script; nothing is sent."""
        self.client, self.text = client, text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str | bytes], args: Sequence[Any] = ()) -> Any:
        """Run it."""
        client = cast(Any, self.client)
        try:
            return await client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:  # a server that was restarted, or another one
            return await client.eval(self.text, len(keys), *keys, *args)


def connect_sync(place: Access | str, timeout_s: float) -> redis.Redis:
    """Return a blocking client for commands that look once. Raises ValueError on a wrong URL.

    Raises RedisRefuses where a knock shows that TLS, or none, is not what the URL says: the client
    itself would wait for its whole time limit, and several times. A cluster's nodes are asked at
    once: ConnectionError is raised where none answers.
    """
    access = Access.of(place)
    why = why_shut_out(access)
    if why is not None:
        raise RedisRefuses(why)
    found = parse_url(access)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        **access.tls,
    }
    if found.kind == "sentinel":
        return _sync_primary(found, options)
    if found.kind == "cluster":
        return cast(redis.Redis, _sync_cluster(found, options))
    return redis.Redis.from_url(access.whole_url, **options)


def _sync_primary(place: Place, options: dict[str, Any]) -> redis.Redis:
    own = _parsed(place)
    sentinel = cast(Any, Sentinel)([], **own, **options, retry=Retry(NoBackoff(), SYNC_RETRIES))
    limits = {**options, "socket_timeout": min(options["socket_timeout"], SENTINEL_TIMEOUT_S)}
    for login in place.sentinel_logins:
        sentinel.sentinels += [
            redis.Redis.from_url(place.sentinel(*host, login), **limits) for host in place.hosts
        ]
    return cast(redis.Redis, sentinel.master_for(place.service))


def _sync_cluster(place: Place, options: dict[str, Any]) -> RedisCluster:
    own = _parsed(place)
    own.pop("db", None)
    nodes = [cast(Any, ClusterNode)(host, port) for host, port in place.hosts]
    try:
        return _Cluster(startup_nodes=nodes, **own, **options)
    except RedisClusterException as error:
        raise ConnectionError(str(error)) from error


def _parsed(place: Place) -> dict[str, Any]:
    """Return login, database, TLS and other options as redis-py's constructors take them."""
    own = cast(Any, redis.connection).parse_url(place.of("host", 1))
    for name in ("host", "port"):
        own.pop(name)
    if own.pop("connection_class", None) is not None:
        own["ssl"] = True
    return dict(own)


class _Cluster(RedisCluster):
    """Raises only what the callers of one server know."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return cast(Any, super()).execute_command(*args, **options)
        except RedisClusterException as error:
            raise ConnectionError(str(error)) from error
