"""Kafka and Valkey on this machine, for the demo, the tests and the benchmarks.

Each service is a context manager over a child program on free loopback ports; none outlives the
interpreter. Not part of the wheel: pytest and mypy have `deploy` on their path, scripts add it.
"""

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
from .service import Service
from .valkey import Valkey

__all__ = [
    "DEFAULT_VERSION",
    "EMBEDDED",
    "FAST_START",
    "ApacheKafka",
    "Child",
    "EmbeddedKafka",
    "KafkaService",
    "Service",
    "ServiceError",
    "Valkey",
    "accepts_connections",
    "apache_or_embedded",
    "fetch_jars",
    "free_ports",
    "missing_for_kafka",
    "wanted_version",
]
