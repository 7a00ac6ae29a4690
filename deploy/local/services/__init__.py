"""Kafka and Valkey on this machine, for the demo, the tests and the benchmarks.

Each service is a context manager over a child program on free loopback ports; none outlives the
interpreter. Not part of the wheel: pytest and mypy have `deploy` on their path, scripts add it.
"""

from .certificates import Authority, Certificate, missing_for_certificates
from .child import Child, ServiceError, accepts_connections, free_ports
from .jars import DEFAULT_VERSION, fetch_jars, missing_for_kafka
from .kafka import (
    EMBEDDED,
    FAST_START,
    ApacheKafka,
    EmbeddedKafka,
    KafkaService,
    apache_or_embedded,
    wanted_version,
)
from .kafka_admin import KafkaBrokers
from .kafka_cluster import ClusterBroker, KafkaCluster
from .kafka_secured import SecuredKafka, grant
from .proxy import Proxy
from .service import Service
from .valkey import Valkey
from .valkey_cluster import ValkeyCluster
from .valkey_replicated import ValkeyReplicated
from .valkey_secured import SecuredValkey

__all__ = [
    "DEFAULT_VERSION",
    "EMBEDDED",
    "FAST_START",
    "ApacheKafka",
    "Authority",
    "Certificate",
    "Child",
    "ClusterBroker",
    "EmbeddedKafka",
    "KafkaBrokers",
    "KafkaCluster",
    "KafkaService",
    "Proxy",
    "SecuredKafka",
    "SecuredValkey",
    "Service",
    "ServiceError",
    "Valkey",
    "ValkeyCluster",
    "ValkeyReplicated",
    "accepts_connections",
    "apache_or_embedded",
    "fetch_jars",
    "free_ports",
    "grant",
    "missing_for_certificates",
    "missing_for_kafka",
    "wanted_version",
]
