"""A cluster of real Apache Kafka brokers, each of which is also a controller of the quorum.

Owns its formation, the kill and return of single brokers, and where the leaders are. Topics have
a copy on every broker (three at most) and are written while two are alive. Used through `services`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from confluent_kafka import ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from .child import LOOPBACK, ServiceError, free_ports
from .group import ServiceGroup, start_all
from .kafka import FAST_START, ApacheKafka, Node, new_cluster_id
from .kafka_admin import ADMIN_TIMEOUT_S, KafkaBrokers

SMALL_HEAP = "-Xmx384m"
PORTS_EACH = 3


class ClusterBroker(ApacheKafka):
    """One broker of a KafkaCluster."""

    def __init__(self, number: int, cluster: KafkaCluster, ports: list[int]) -> None:
        """Prepare node `number`; the ports of all are known before the first one starts."""
        super().__init__(
            cluster.version,
            settings=cluster.settings,
            jvm=(*cluster.jvm, SMALL_HEAP),
            proxied=cluster.proxied,
        )
        self.number = number
        self.cluster = cluster
        self.cluster_id = cluster.cluster_id
        self._ports = ports

    @property
    def log(self) -> Path:
        """Return the file that holds what the program printed, over all its starts."""
        return self.folder / f"{self.name}-{self.number}.log"

    @property
    def node(self) -> Node:
        """Return its place in the cluster."""
        port, controller_port, proxied_port = self._ports
        if self.proxy is None:
            return Node(self.number, port, controller_port)
        return Node(self.number, port, controller_port, proxied_port, self.proxy.port)

    def nodes(self) -> list[Node]:
        """Return all nodes of its cluster."""
        return [broker.node for broker in self.cluster.brokers]

    def answers(self) -> bool:
        """Tell whether this broker answers and sees itself among those that serve."""
        with suppress(KafkaException):
            metadata = _metadata(self.admin(), timeout_s=2.0)
            return metadata.cluster_id == self.cluster_id and self.number in metadata.brokers
        return False

    def format(self, config: Path) -> None:
        """Take over the first broker's storage: two starts of Java less than formatting it."""
        first = self.cluster.brokers[0]
        if first is self:
            super().format(config)
            return
        shutil.copytree(first.data, self.data)
        meta = self.data / "meta.properties"
        lines = dict(line.split("=", 1) for line in meta.read_text().splitlines() if "=" in line)
        lines |= {"node.id": str(self.number), "directory.id": new_cluster_id()}
        meta.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))


class KafkaCluster(ServiceGroup, KafkaBrokers):
    """Several brokers on this machine; broker `i` is node i + 1."""

    name: ClassVar[str] = "kafka-cluster"
    real: ClassVar[bool] = True

    def __init__(
        self,
        brokers: int = 3,
        *,
        version: str | None = None,
        settings: Mapping[str, str] | None = None,
        jvm: tuple[str, ...] = FAST_START,
        proxied: bool = False,
    ) -> None:
        """Prepare the brokers; settings and `proxied` are as of ApacheKafka, for each of them."""
        super().__init__()
        self.size = brokers
        self.copies = min(3, brokers)
        self.version = version
        self.jvm = jvm
        self.proxied = proxied
        self.cluster_id = new_cluster_id()
        self.settings = {
            "default.replication.factor": str(self.copies),
            "min.insync.replicas": str(min(2, brokers)),
            **(settings or {}),
        }
        self.brokers: list[ClusterBroker] = []

    @property
    def members(self) -> Sequence[ApacheKafka]:
        """Return every broker."""
        return self.brokers

    @property
    def description(self) -> str:
        """Return name, version and size for reports."""
        version = self.brokers[0].version if self.brokers else self.version
        return f"Apache Kafka {version} (KRaft), {self.size} brokers"

    @property
    def address(self) -> str:
        """Return `host:port,host:port,...`."""
        return ",".join(broker.address for broker in self.brokers)

    @property
    def proxied_address(self) -> str:
        """Return the addresses of clients that are to stay behind the brokers' proxies."""
        return ",".join(broker.proxied_address for broker in self.brokers)

    def form(self) -> None:
        """Start all brokers at once."""
        ports = free_ports(PORTS_EACH * self.size)
        self.brokers = [
            ClusterBroker(number + 1, self, ports[number * PORTS_EACH : (number + 1) * PORTS_EACH])
            for number in range(self.size)
        ]
        for broker in self.brokers:
            if broker.proxy is not None:  # its port stands in the configuration
                broker.proxy.start().point_at(f"{LOOPBACK}:{broker.node.proxied_port}")
        for broker in self.brokers:
            broker.command()  # writes the storage, the first broker's before the others copy it
        start_all(self.brokers)

    def ready(self) -> None:
        """Return once every broker knows all."""
        self.wait_for_brokers()

    def kill(self, index: int) -> None:
        """SIGKILL one broker; the others take its leaderships over within 2 to 5 s."""
        self.brokers[index].kill()

    def restart(self, index: int) -> None:
        """Start one broker again on its ports with its log (stopping it if it runs)."""
        self.brokers[index].restart()

    def pause(self, index: int) -> None:
        """Freeze one broker with SIGSTOP."""
        self.brokers[index].pause()

    def resume(self, index: int) -> None:
        """Let a paused broker go on."""
        self.brokers[index].resume()

    def create_topic(
        self, topic: str, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic with a copy on each broker, written while two of them are alive."""
        two = {"min.insync.replicas": str(min(2, self.size))}
        super().create_topic(topic, partitions, {**two, **(config or {})})
        admins = [broker.admin() for broker in self.brokers if broker.running]

        def known() -> bool:
            seen = [_metadata(admin, topic).topics[topic].partitions for admin in admins]
            return all(len(partitions_seen) == partitions for partitions_seen in seen)

        self.wait_until(f"topic {topic} known to each broker", known)

    def leader(self, topic: str, partition: int) -> int | None:
        """Return the index (0 and up) of the broker that leads a partition; None: nobody does."""
        leader = _metadata(self.admin(), topic).topics[topic].partitions[partition].leader
        return leader - 1 if leader > 0 else None

    def move_leader(self, topic: str, partition: int, to: int | None = None) -> int:
        """Make another broker lead a partition, the one of index `to` or any, and return which.

        No broker ends: the order of the replicas is changed, then the first one is elected.
        Raises: ServiceError when the cluster refuses or does not do it in time.
        """
        found = _metadata(self.admin(), topic).topics[topic].partitions[partition]
        able = [r for r in found.replicas if r in found.isrs and r != found.leader]
        node = able[0] if to is None and able else (to or 0) + 1
        others = [replica for replica in found.replicas if replica != node]
        asyncio.run(_reassign(self.address, topic, partition, [node, *others]))
        admin, which = self.admin(), [TopicPartition(topic, partition)]

        def moved() -> bool:
            with suppress(KafkaException):  # "not needed" before the new order is known
                admin.elect_leaders(ElectionType.PREFERRED, which).result(ADMIN_TIMEOUT_S)
            return self.leader(topic, partition) == node - 1

        self.wait_until(f"broker {node} to lead {topic}/{partition}", moved)
        return node - 1

    def wait_for_brokers(self) -> None:
        """Return once every living broker sees all living ones."""
        alive = {broker.number for broker in self.brokers if broker.running}
        admins = [broker.admin() for broker in self.brokers if broker.running]

        def all_seen() -> bool:
            return all(set(_metadata(admin).brokers) == alive for admin in admins)

        self.wait_until(f"each of the brokers {alive} to see all of them", all_seen)

    def wait_in_sync(self, topic: str) -> None:
        """Return once every partition of a topic has all its copies in sync."""
        admin = self.admin()

        def in_sync() -> bool:
            known = _metadata(admin, topic).topics[topic].partitions
            return bool(known) and all(len(p.isrs) == len(p.replicas) for p in known.values())

        self.wait_until(f"all copies of {topic} in sync", in_sync)


def _metadata(
    admin: AdminClient, topic: str | None = None, timeout_s: float = ADMIN_TIMEOUT_S
) -> Any:  # ClusterMetadata
    return cast(Any, admin).list_topics(topic, timeout=timeout_s)


async def _reassign(address: str, topic: str, partition: int, replicas: list[int]) -> None:
    """Set a partition's replicas; confluent-kafka's admin client cannot."""
    client = AIOKafkaClient(bootstrap_servers=address)
    await client.bootstrap()
    try:
        where = cast("tuple[int, list[int], dict[int, bytes]]", (partition, replicas, {}))
        request = AlterPartitionReassignmentsRequest(30_000, [(topic, [where], {})], {})
        reply = await client.send(client.get_random_node(), request)
        codes = [p[1] for name, parts, _ in reply.responses for p in parts]
        if reply.error_code or any(codes):
            raise ServiceError(f"{topic}/{partition}: replicas {replicas} are refused: {reply}")
    finally:
        await client.close()
