"""The Redis variants of a campaign behind one face: plain, replicated, cluster.

Owns which node a fault strikes and how each variant is brought back. The programs themselves are
deploy/local/services; nothing here knows partitions or schedules. Used by services.py, which starts
each variant once, and by redis_faults.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from local.services import Proxy, ServiceError, Valkey, ValkeyCluster, ValkeyReplicated

SERVICE = "keyfold"  # the Sentinels' name of the primary
ANSWER_S = 20.0  # a store that was healed must answer within this


class StoreVariant(ABC):
    """One Redis variant, started once and used by schedules one after the other."""

    name: str

    @property
    @abstractmethod
    def url(self) -> str:
        """Return what workers and the oracle connect to."""

    @property
    def proxied_url(self) -> str:
        """Return the same behind the proxy, where the variant has one."""
        return self.url

    @abstractmethod
    def client(self) -> Any:
        """Return a client of the whole (a cluster's finds the node by the name)."""

    @abstractmethod
    def primaries(self) -> list[Valkey]:
        """Return the servers that take writes."""

    def servers(self) -> list[Valkey]:
        """Return every server."""
        return self.primaries()

    @abstractmethod
    def close(self) -> None:
        """End the programs."""

    def network(self) -> Proxy | None:
        """Return the proxy that workers may be behind."""
        return None

    def kill(self, node: int) -> Callable[[], None]:
        """SIGKILL a primary; return what brings it back."""
        victim = self.primaries()[node % len(self.primaries())]
        victim.kill()
        return lambda: void(victim.start())

    def pause(self, node: int) -> Callable[[], None]:
        """Freeze a primary; return what lets it go on."""
        victim = self.primaries()[node % len(self.primaries())]
        victim.pause()
        return victim.resume

    def fill_up(self) -> Callable[[], None]:
        """Let every primary be out of memory; return what ends that."""
        with _Nodes(self.primaries()) as nodes:
            for node in nodes:
                node.config_set("maxmemory", "1")
        return self.empty_enough

    def empty_enough(self) -> None:
        """Take the memory limit away."""
        with _Nodes(self.servers()) as nodes:
            for node in nodes:
                node.config_set("maxmemory", "0")

    def flush(self) -> None:
        """Lose everything."""
        with _Nodes(self.primaries()) as nodes:
            for node in nodes:
                node.flushall()

    def failover(self, lag_s: float) -> Callable[[], None]:
        """Kill the primary so that its replica, `lag_s` behind, takes over."""
        raise NotImplementedError(f"{self.name} has no replica")

    def revive(self) -> None:
        """Bring back whatever is away, and return once a write is taken.

        Raises RuntimeError when none is.
        """
        self.empty_enough()  # a Sentinel may have written the limit into a configuration
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            with suppress(redis.RedisError, OSError):
                client = self.client()
                try:
                    client.set("{campaign}", "answers")
                    return
                finally:
                    client.close()
            time.sleep(0.05)
        raise RuntimeError(f"Redis ({self.name}) does not answer {ANSWER_S:.0f} s after it healed")


class _Nodes:
    """Direct clients of some servers."""

    def __init__(self, servers: list[Valkey]) -> None:
        self._clients = [server.client() for server in servers if server.running]

    def __enter__(self) -> Iterator[Any]:
        return iter(self._clients)

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()


def _impatient() -> dict[str, Any]:
    """Return a client's options: a look at a frozen Redis must not hold up the other faults."""
    return {"socket_timeout": 1, "socket_connect_timeout": 1, "retry": Retry(NoBackoff(), 0)}


def void(_: object) -> None:
    """Throw a result away."""


class PlainStore(StoreVariant):
    """One Valkey, with a proxy in front of it for those who want a bad network."""

    name = "plain"

    def __init__(self) -> None:
        self._server = Valkey().start()
        self._proxy = Proxy(self._server.address).start()

    @property
    def url(self) -> str:
        """Return the server's own address."""
        return self._server.url

    @property
    def proxied_url(self) -> str:
        """Return the proxy's address."""
        return f"redis://{self._proxy.address}/0"

    def client(self) -> Any:
        """Return a client that never waits long."""
        return redis.Redis(port=self._server.port, **_impatient())

    def primaries(self) -> list[Valkey]:
        """Return the one server."""
        return [self._server]

    def network(self) -> Proxy | None:
        """Return the proxy in front of it."""
        return self._proxy

    def close(self) -> None:
        """End the server."""
        self._proxy.close()
        self._server.close()


class ReplicatedStore(StoreVariant):
    """A primary and its replica under Sentinels."""

    name = "replicated"

    def __init__(self) -> None:
        self._group = ValkeyReplicated().start()

    @property
    def url(self) -> str:
        """Return the Sentinels' address."""
        return self._group.url

    def client(self) -> Any:
        """Return a client that asks the Sentinels for the primary."""
        sentinels = [("127.0.0.1", sentinel.port) for sentinel in self._group.sentinels]
        found = cast(Any, redis.Sentinel)(sentinels, socket_timeout=2)
        return found.master_for(SERVICE, **_impatient())

    def primaries(self) -> list[Valkey]:
        """Return the present primary."""
        return [self._group.primary()]

    def servers(self) -> list[Valkey]:
        """Return the primary and its replica."""
        return list(self._group.nodes)

    def failover(self, lag_s: float) -> Callable[[], None]:
        """Kill the primary; with `lag_s` the replica misses that much, which is lost."""
        if not lag_s:
            old = self._group.primary()
            old.kill()
            return self._bring_back
        self._group.lag_replica()
        time.sleep(lag_s)  # the writes that will be lost
        self._group.primary().kill()
        return self._bring_back

    def _bring_back(self) -> None:
        down = [node for node in self._group.nodes if not node.running]
        for node in down:
            with suppress(ServiceError):  # without a failover it comes back as the primary
                self._group.wait_failover(node)
        self._group.start()
        self._group.catch_up()

    def revive(self) -> None:
        """Bring nodes back in step."""
        self._bring_back()
        super().revive()

    def close(self) -> None:
        """End all."""
        self._group.close()


class ClusterStore(StoreVariant):
    """Three primaries that share the partitions' hashes."""

    name = "cluster"

    def __init__(self) -> None:
        self._cluster = ValkeyCluster().start()

    @property
    def url(self) -> str:
        """Return the URL of all nodes."""
        return self._cluster.url

    def client(self) -> Any:
        """Return a client that finds the node of a hash."""
        nodes = [
            cast(Any, ClusterNode)("127.0.0.1", node.port)
            for node in self._cluster.nodes
            if node.running
        ]
        return RedisCluster(startup_nodes=nodes, **_impatient())

    def primaries(self) -> list[Valkey]:
        """Return all nodes."""
        return list(self._cluster.nodes)

    def revive(self) -> None:
        """Bring nodes back."""
        self._cluster.start()
        self._cluster.wait_ok()
        super().revive()

    def close(self) -> None:
        """End all."""
        self._cluster.close()
