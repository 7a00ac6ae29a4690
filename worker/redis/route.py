"""Redis clients that find their server again: through Sentinels, or by a cluster's slots.

Owns which server a command goes to. Every server has a plain client with its own pool; a command
that fails because its server is gone, or is no primary any more, is raised as a ConnectionError
and the next one asks again where to go. Nothing is repeated here: worker/surroundings.py does
that. redis-py's own clients are not used: its Sentinel pool reconnects to the old primary (issue
3874), its cluster client drops every connection in use when one node fails, refuses commands when
all connections are taken, and raises errors that are no RedisError.
Commands name one key, or keys with one hash tag; there are no pipelines. Made by client.py.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Never, cast

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ConnectionError,  # noqa: A004
    MovedError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004
)

from keyfold.worker.redis.url import Place

Address = tuple[str, int]
MakeClient = Callable[[str], Redis]  # of one server's URL

MAX_REDIRECTS = 5
SENTINEL_TIMEOUT_S = 2.0  # a Sentinel answers at once or is not there
# The other commands carry their key first, EVAL and EVALSHA as the third argument.
KEYLESS = frozenset({"PING", "INFO", "SCRIPT", "CONFIG", "TIME", "ROLE", "WAIT", "COMMAND"})


class Routed(Redis):
    """What both have in common: one client per server, made when needed and kept to the end."""

    def __init__(self, place: Place, make: MakeClient) -> None:
        super().__init__()  # never connected itself: it lends the commands' methods
        self.place, self._make = place, make
        self._clients: dict[Address, Redis] = {}
        self._asking = asyncio.Lock()

    async def primaries(self) -> list[Redis]:
        """Return a client for each server that holds states."""
        raise NotImplementedError

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))
        await super().aclose(close_connection_pool)

    def pipeline(self, *_: Any, **__: Any) -> Never:
        """Refuse: a pipeline would go to no server in particular."""
        raise NotImplementedError("no pipelines over Sentinels or a cluster: use a script")

    def _client(self, address: Address) -> Redis:
        if address not in self._clients:
            self._clients[address] = self._make(self.place.of(*address))
        return self._clients[address]


class SentinelRedis(Routed):
    """Goes to the primary that the Sentinels name."""

    def __init__(self, place: Place, make: MakeClient, make_sentinel: MakeClient) -> None:
        super().__init__(place, make)
        self._sentinels = [
            _Sentinel(
                [make_sentinel(place.sentinel(*host, login)) for login in place.sentinel_logins]
            )
            for host in place.hosts
        ]
        self._primary: Redis | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the primary of this moment."""
        client = self._primary or await self._find()
        try:
            return await cast(Any, client).execute_command(*args, **options)
        except ReadOnlyError as error:
            await self._lose(client)
            raise ConnectionError(f"the primary became a replica: {error}") from error
        except (ConnectionError, TimeoutError, OSError):
            await self._lose(client)
            raise

    async def primaries(self) -> list[Redis]:
        """Return a client of the primary."""
        return [self._primary or await self._find()]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections, those to the Sentinels included."""
        clients = [client for sentinel in self._sentinels for client in sentinel.clients]
        await asyncio.gather(*(client.aclose() for client in clients))
        await super().aclose(close_connection_pool)

    async def _lose(self, client: Redis) -> None:
        if self._primary is client:
            self._primary = None
        await client.connection_pool.disconnect(inuse_connections=False)

    async def _find(self) -> Redis:
        async with self._asking:  # one asks, the others take what it found
            if self._primary is None:
                self._primary = self._client(await self._ask())
            return self._primary

    async def _ask(self) -> Address:
        """Ask all Sentinels: one that was cut off may still name the primary of old."""
        service = self.place.service
        replies = await asyncio.gather(
            *(sentinel.master(service) for sentinel in self._sentinels), return_exceptions=True
        )
        named: list[tuple[int, Address]] = []
        reasons: list[str] = []
        for (host, port), reply in zip(self.place.hosts, replies, strict=True):
            if isinstance(reply, RedisError | OSError):
                reasons.append(f"{host}:{port}: {reply}")
            elif isinstance(reply, BaseException):
                raise reply
            elif reply["is_sdown"] or reply["is_odown"] or not reply["is_master"]:
                reasons.append(f"{host}:{port}: {reply['ip']}:{reply['port']} is down")
            else:
                named.append((int(reply["config-epoch"]), (reply["ip"], int(reply["port"]))))
        if not named:
            raise ConnectionError(f"no primary of {service!r} by Sentinel {'; '.join(reasons)}")
        return max(named)[1]


@dataclass(frozen=True, slots=True)
class _Sentinel:
    """One Sentinel."""

    clients: Sequence[Redis]  # one per login that it may want

    async def master(self, service: str) -> dict[str, Any]:
        for client in self.clients[:-1]:
            try:
                return dict(await cast(Any, client.sentinel_master(service)))
            except AuthenticationError:
                continue
        return dict(await cast(Any, self.clients[-1].sentinel_master(service)))


class ClusterRedis(Routed):
    """Goes to the node that serves the key's slot."""

    def __init__(self, place: Place, make: MakeClient) -> None:
        super().__init__(place, make)
        self._starts: list[int] = []  # first slots of ranges, ascending
        self._ranges: list[tuple[int, Address]] = []  # their last slots and nodes
        self._current = False  # whether the two above are to be trusted
        self._failed: Address | None = None  # asked last where the slots are

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the node that serves its key, following redirections."""
        slot = _slot(args)
        for _ in range(MAX_REDIRECTS):
            if not self._current:
                await self._reload(None)
            address = self._serving(slot)
            client = self._client(address)
            try:
                return await cast(Any, client).execute_command(*args, **options)
            except MovedError as moved:
                await self._reload((moved.host or address[0], moved.port))
            except AskError as asked:
                return await self._asked((asked.host or address[0], asked.port), args, options)
            except ClusterDownError:
                self._current = False
                raise
            except (ConnectionError, TimeoutError, OSError):
                self._current, self._failed = False, address
                await client.connection_pool.disconnect(inuse_connections=False)
                raise
        raise ConnectionError(f"cluster: slot {slot} moved {MAX_REDIRECTS} times at once")

    async def primaries(self) -> list[Redis]:
        """Return a client for each node that serves slots."""
        if not self._current:
            await self._reload(None)
        return [self._client(address) for address in sorted({node for _, node in self._ranges})]

    def _serving(self, slot: int) -> Address:
        place = bisect_right(self._starts, slot) - 1
        if place < 0 or self._ranges[place][0] < slot:
            self._current = False
            raise ConnectionError(f"cluster: no node serves slot {slot}")
        return self._ranges[place][1]

    async def _asked(self, address: Address, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Follow a slot that is moving: the leave to ask counts for one command behind it."""
        both = self._client(address).pipeline(transaction=False)
        both.execute_command("ASKING")
        both.execute_command(*args, **options)
        return (await both.execute())[1]

    async def _reload(self, best: Address | None) -> None:
        """Ask for the slots: the node `best`, those known, those of the URL, the failed one."""
        self._current = False
        async with self._asking:
            if self._current:  # somebody else asked meanwhile
                return
            known = [*([best] if best else []), *(node for _, node in self._ranges)]
            candidates = list(dict.fromkeys([*known, *self.place.hosts]))
            candidates.sort(key=lambda address: address == self._failed)
            reasons = []
            for address in candidates:
                client = cast(Any, self._client(address))
                try:
                    # In two words: in one it has a reply parser, not the same in each redis-py.
                    ranges = await client.execute_command("CLUSTER", "SLOTS")
                except (RedisError, OSError) as error:
                    reasons.append(f"{address[0]}:{address[1]}: {error}")
                    continue
                self._learn(ranges, address[0])
                return
            raise ConnectionError(f"cluster: no node says where the slots are: {reasons}")

    def _learn(self, ranges: list[Any], asked: str) -> None:
        found = sorted(
            (int(first), int(last), (_text(primary[0]) or asked, int(primary[1])))
            for first, last, primary, *_ in ranges
        )
        self._starts = [first for first, _, _ in found]
        self._ranges = [(last, address) for _, last, address in found]
        self._current, self._failed = True, None


def _text(host: bytes | str | None) -> str:
    """Return a node's host; "" where it says that it is the one that was asked."""
    text = host.decode() if isinstance(host, bytes) else host or ""
    return "" if text == "?" else text


def _slot(args: Sequence[Any]) -> int:
    command = str(args[0]).partition(" ")[0].upper()
    if command in KEYLESS:
        return 0  # any node will do
    key = args[3] if command in ("EVAL", "EVALSHA") else args[1]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())
