"""A Valkey Cluster on this machine: primaries that share the 16384 slots, with replicas if wanted.

Owns its formation without external tools and the kill and return of single nodes. Used through
`services`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, cast

import redis
from redis.cluster import ClusterNode as Startup
from redis.cluster import RedisCluster

from .child import LOOPBACK, ServiceError
from .group import ServiceGroup, start_all
from .valkey import Valkey

SLOTS = 16_384
NODE_TIMEOUT_MS = 1000  # a node that is silent for so long is taken for dead


class ClusterNode(Valkey):
    """One node; it needs a second port for what the nodes tell one another."""

    ports_needed: ClassVar[int] = 2

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        """Prepare a node; `settings` are added to SETTINGS or replace them."""
        cluster = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-announce-ip": LOOPBACK,
            "repl-diskless-sync-delay": "0",
        }
        super().__init__(settings={**cluster, **(settings or {})})

    @property
    def bus_port(self) -> int:
        """Return the port that the other nodes use."""
        return self._ports[1]

    def command(self) -> list[str]:
        """Return the command line for these ports and folder."""
        return [*super().command(), "--cluster-port", str(self.bus_port)]

    def says(self, *words: object) -> Any:
        """Return the reply to a command sent to this very node."""
        with self.client() as client:
            return client.execute_command(*words)

    def cluster_info(self) -> dict[str, str]:
        """Return what CLUSTER INFO says."""
        with self.client() as client:
            return dict(cast(Any, client.cluster("INFO")))


class ValkeyCluster(ServiceGroup):
    """`primaries` nodes with slots and `replicas` more for each; node i < primaries has slots."""

    def __init__(
        self, primaries: int = 3, replicas: int = 0, settings: dict[str, str] | None = None
    ) -> None:
        """Prepare the nodes. Without replicas the cluster is down while a primary is.

        `settings={"cluster-require-full-coverage": "no"}`: then only that primary's slots are.
        """
        super().__init__()
        self._primaries, self._replicas, self._settings = primaries, replicas, settings
        self.nodes: list[ClusterNode] = []

    @property
    def members(self) -> Sequence[ClusterNode]:
        """Return every node."""
        return self.nodes

    @property
    def url(self) -> str:
        """Return the URL, with every node in it."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def form(self) -> None:
        """Start the nodes, share the slots out and let all meet."""
        total = self._primaries * (1 + self._replicas)
        self.nodes = [ClusterNode(self._settings) for _ in range(total)]
        start_all(self.nodes)
        edges = [SLOTS * number // self._primaries for number in range(self._primaries + 1)]
        for node, first, end in zip(self.nodes, edges[:-1], edges[1:], strict=False):
            node.says("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for number, node in enumerate(self.nodes, start=1):
            node.says("CLUSTER SET-CONFIG-EPOCH", number)
        for node in self.nodes[1:]:
            node.says("CLUSTER MEET", LOOPBACK, self.nodes[0].port, self.nodes[0].bus_port)
        self.wait_until("nodes that all know one another", self._met)
        for number, node in enumerate(self.nodes[self._primaries :]):
            of = self.nodes[number % self._primaries].says("CLUSTER MYID")
            node.says("CLUSTER REPLICATE", of)

    def ready(self) -> None:
        """Return once the cluster is up."""
        self.wait_ok()

    def client(self) -> RedisCluster:
        """Return a new client of the whole cluster; the caller closes it."""
        return RedisCluster(
            startup_nodes=[cast(Any, Startup)(LOOPBACK, n.port) for n in self.nodes if n.running],
            socket_timeout=5.0,
        )

    def node_of(self, key: str | bytes) -> ClusterNode:
        """Return the node that serves a key now."""
        alive = next(node for node in self.nodes if node.running)
        with alive.client() as client:
            slot = int(cast(Any, client.cluster("KEYSLOT", key)))
            for first, last, primary, *_ in cast(Any, client.cluster("SLOTS")):
                if first <= slot <= last:
                    return next(node for node in self.nodes if node.port == primary[1])
        raise ServiceError(f"no node serves slot {slot}")

    def kill(self, index: int) -> None:
        """SIGKILL one node."""
        self.nodes[index].kill()

    def restart(self, index: int) -> None:
        """Start one node again on its ports with its data, and wait until the cluster is up."""
        self.nodes[index].restart()
        self.wait_ok()

    def wait_ok(self) -> None:
        """Return once every living node says that the cluster serves all slots."""
        self.wait_until("up", self._ok)

    def _met(self) -> bool:
        return all(
            int(node.cluster_info()["cluster_known_nodes"]) == len(self.nodes)
            for node in self.nodes
        )

    def _ok(self) -> bool:
        with suppress(redis.RedisError):
            return all(n.cluster_info()["cluster_state"] == "ok" for n in self.nodes if n.running)
        return False
