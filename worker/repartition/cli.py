"""keyfold-worker repartition: fills the input topic from one whose record key is another one.

Owns the command line, what must hold before it begins, and that it goes on after a failure. Each
record of the other topic goes exactly once to kafka.input under the key that its key field names,
where Java clients would put it; one without that field goes to the dead-letter topic. Called by
worker/cli.py.
"""

from __future__ import annotations

import argparse
import logging
import signal
import time
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it declares no exports
    AdminClient,
    ConfigResource,
    ResourceType,
)

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.worker.config import Config, read_config
from keyfold.worker.emit import DEFAULT_MESSAGE_BYTES, LIMIT_NAME
from keyfold.worker.errors import SetUpError, TopicError
from keyfold.worker.kafka.samples import open_log
from keyfold.worker.key_field import KeyReader, configured_key_field, refuse_packed
from keyfold.worker.repartition.session import Session
from keyfold.worker.repartition.work import Again, Work

log = logging.getLogger(__name__)

FAILURES = 10  # transactions that fail one after the other before it ends
AGAIN_S = 1.0  # before it begins anew after one
LOOK_S = 0.1  # between two looks whether to stop
EX_CRASH = 70


def main(argv: list[str]) -> int:
    """Repartition until SIGTERM, or with --once until the topic's end. Raises Crash."""
    given = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = read_config(given.config, given.set)
    bundle = contract.load(config.worker.bundle)
    field = given.key_field or configured_key_field(config) or bundle.manifest.events.key_field
    if not field:
        raise SetUpError("kafka.key_field: expected the field that holds the key, got none")
    refuse_packed(field, bundle.manifest.events)
    _check_topics(config, given.source)
    work = work_of(config, bundle, given.source, field, given.instance)
    work.begin = given.begin
    log.info("%s -> %s, keyed by %r, positions in group %s", work.source, work.target, field,
             work.group)  # fmt: skip
    return _keep_on(config, work, Stop(), given.once)


class Stop:
    """SIGTERM and SIGINT: end behind the transaction under way."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def wait(self, seconds: float) -> None:
        """Let time pass, unless a stop is asked for."""
        deadline = time.monotonic() + seconds
        while not self.asked and time.monotonic() < deadline:
            time.sleep(LOOK_S)


def _keep_on(config: Config, work: Work, stop: Stop, once: bool) -> int:
    failures = 0
    while not stop.asked:
        before = work.done
        try:
            with Session(config, work) as session:
                session.run(stop, once)
            break
        except Again as error:
            failures = 1 if work.done > before else failures + 1
            if failures > FAILURES:
                log.error("%s", error)
                return EX_CRASH
            log.warning("%s; beginning anew behind the last transaction", error)
            stop.wait(AGAIN_S)
    log.info("%s", work)
    return 0


def work_of(config: Config, bundle: Bundle, source: str, field: str, instance: str) -> Work:
    """Return what is to be done, with the names that Kafka will know it by."""
    kafka = config.kafka
    group = f"{kafka.group}-repartition"
    limits = {topic: _max_bytes(config, topic) for topic in (kafka.input, kafka.dead_letter)}
    return Work(
        source, kafka.input, kafka.dead_letter, group, f"{group}:{source}:{instance}", bundle.id,
        field, KeyReader(field, bundle.manifest.events), limits,
    )  # fmt: skip


def _check_topics(config: Config, source: str) -> None:
    """See that the topics are there and are three. Raises Crash."""
    kafka = config.kafka
    if source in (kafka.input, kafka.dead_letter, kafka.output):
        raise TopicError(f"--from: expected another topic than the worker's own, got {source!r}")
    with open_log(config) as found:
        for topic in (source, kafka.input, kafka.dead_letter):
            found.partitions(topic)


def _max_bytes(config: Config, topic: str) -> int:
    """Return a topic's max.message.bytes, or Kafka's default where we may not see it."""
    admin = AdminClient({**config.connection.librdkafka(), "log_level": 0})
    resource = ConfigResource(ResourceType.TOPIC, topic)
    asked = admin.describe_configs([resource], request_timeout=config.kafka.request_timeout_s)
    try:
        return int(asked[resource].result()[LIMIT_NAME].value)
    except (KafkaException, KeyError):
        return DEFAULT_MESSAGE_BYTES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-worker repartition",
        description="Fill a worker's input topic from a topic whose record key is another one: "
        "each record once, under the key that a field of its value names, placed by murmur2. "
        "Records without that field go to the dead-letter topic.",
        epilog="May be killed at any time; a restart goes on. A key whose records lie in several "
        "partitions comes in the order of their timestamps as far as they had arrived. Exit "
        "status: 0 stopped (SIGTERM) or done (--once), 2 something must be set right first, 70 "
        "brokers that do not end transactions.",
    )
    add = parser.add_argument
    add("config", type=Path, help="worker.toml: kafka.input is where to")
    add("--from", dest="source", required=True, metavar="TOPIC", help="where from")
    add("--key-field", metavar="FIELD", help="default: kafka.key_field, else the bundle's")
    begin = parser.add_mutually_exclusive_group()
    for end, what in (("start", "oldest record"), ("end", "end")):
        begin.add_argument(
            f"--from-{end}", dest="begin", action="store_const", const=end, default="",
            help=f"begin at a partition's {what} where the group has no position, or one whose "
            "records were deleted; changes nothing elsewhere",
        )  # fmt: skip
    add("--once", action="store_true", help="stop when all that is there was moved")
    add("--instance", default="0", metavar="NAME",
        help="one of several that share the topic's partitions: a name of its own")  # fmt: skip
    add("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="override one setting")  # fmt: skip
    return parser
