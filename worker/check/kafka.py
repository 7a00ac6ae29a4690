"""keyfold-worker check's questions to Kafka: are we let in, are the topics there, may we, who else?

Owns what is asked of the brokers and the words of the answers; records are read in
records.py. It joins no group and changes nothing. Called by cli.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka.errors import KafkaError
from confluent_kafka import ConsumerGroupState, KafkaException, TopicCollection
from confluent_kafka import KafkaError as ClientError
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it declares no exports
    AdminClient,
    ConfigResource,
    ResourceType,
)

from keyfold.export import refusals
from keyfold.export.events import MAX_KEY_BYTES
from keyfold.worker.check.access import missing_right
from keyfold.worker.check.report import Finding, Missing, fail, ok, warn
from keyfold.worker.config import Config
from keyfold.worker.emit import DEFAULT_MESSAGE_BYTES
from keyfold.worker.errors import Crash
from keyfold.worker.first_day.example_events import KEY, example_events, record_value
from keyfold.worker.kafka.rights import missing_rights
from keyfold.worker.kafka.samples import Taken
from keyfold.worker.kafka.session_timeout import limits_ms, refused
from keyfold.worker.kafka.topics import judge_topics
from keyfold.worker.model import Model
from keyfold.worker.store import MAX_SAVE_BYTES
from keyfold.worker.trial import Trial

LONGEST_S = 10.0  # of one question: a person waits
AGAIN_S = 0.2  # between two questions to a coordinator that is not there yet
COME_BACK = (
    ClientError.COORDINATOR_LOAD_IN_PROGRESS,
    ClientError.COORDINATOR_NOT_AVAILABLE,
    ClientError.NOT_COORDINATOR,
)
DAY_MS = 24 * 3_600_000
MANY = 100  # states that one save should have room for
ASSIGNOR = "roundrobin"  # of Faust without standby tables


class KafkaSide:
    """The questions to the brokers of one worker.toml."""

    def __init__(self, config: Config) -> None:
        self._config, self._kafka = config, config.kafka
        self._limit_s = min(config.kafka.request_timeout_s, LONGEST_S)
        self._client: AdminClient | None = None
        self.counts: dict[str, int] = {}  # partitions by topic

    def reach(self) -> Iterator[Finding]:
        """Ask whether we are let in."""
        admin = self._admin()
        found = refusals.ask(
            self._config.connection, lambda left_s: admin.list_topics(timeout=left_s),
            self._limit_s, (KafkaException,),
        )  # fmt: skip
        self.counts = {name: len(topic.partitions) for name, topic in found.topics.items()}
        brokers = "1 broker" if len(found.brokers) == 1 else f"{len(found.brokers)} brokers"
        security = self._config.security
        login = f" as {security.username}" if security.sasl else ""
        yield ok(f"{self._kafka.brokers} lets us in{login} ({security.protocol}), {brokers}")

    def topics(self) -> Iterator[Finding]:
        """Ask whether the three topics exist, fit each other and keep what is needed."""
        kafka = self._kafka
        alert = self._config.emit.alert_topic
        names = (kafka.input, kafka.output, kafka.dead_letter, alert)
        missing = [name for name in names if name and not self.counts.get(name)]
        partitions = self.counts.get(kafka.input) or self.counts.get(kafka.output) or "N"
        for name in missing:
            yield fail(
                f"topic {name!r}: none that we may see; create it (the worker never does): "
                f"kafka-topics.sh --bootstrap-server {self._config.connection.addresses[0]} "
                f"--create --topic {name} --partitions {partitions}"
            )
        if missing:
            raise Missing
        judge_topics(self.counts, *names)
        yield ok(
            f"{kafka.input} and {kafka.output} have {self.counts[kafka.input]} partitions each, "
            f"{kafka.dead_letter} {self.counts[kafka.dead_letter]}"
            + (f", {alert} {self.counts[alert]}" if alert else "")
        )
        try:
            settings = self._configs(kafka.input)
        except KafkaException as error:
            yield warn(f"settings of {kafka.input} cannot be seen ({error.args[0].str()}): see "
                       "that its cleanup.policy is delete")  # fmt: skip
            return
        if "compact" in settings.get("cleanup.policy", ""):
            yield warn(
                f"{kafka.input}: cleanup.policy compact removes events of a key before they can "
                "be folded again: a rebuild would differ; set it to delete"
            )
        yield _retention(kafka.input, int(settings.get("retention.ms", -1)))

    def sizes(self, model: Model) -> Iterator[Finding]:
        """Ask whether predictions and rejects fit their topics."""
        kafka = self._kafka
        limits = {name: self._max_bytes(name) for name in (kafka.input, kafka.output,
                                                           kafka.dead_letter)}  # fmt: skip
        alert = self._config.emit.alert_topic
        prediction = _prediction_bytes(model, kafka.input)
        limit = limits[kafka.output]
        said = f"a prediction takes about {prediction:,} bytes, {kafka.output} takes {limit:,}"
        if not prediction:
            yield ok(f"{kafka.output} takes {limit:,} bytes")
        elif prediction > limit:
            yield fail(f"{said}: raise its max.message.bytes")
        elif prediction + 3 * MAX_KEY_BYTES > limit:
            yield warn(f"{said}: keys above {max(limit - prediction, 0) // 3:,} bytes will not fit")
        else:
            yield ok(said)
        if alert and (most := self._max_bytes(alert)) < limits[kafka.output]:
            yield warn(
                f"{alert} takes {most:,} bytes, {kafka.output} {limits[kafka.output]:,}: a "
                "prediction that fits there only stops the worker; raise its max.message.bytes"
            )
        if limits[kafka.dead_letter] < limits[kafka.input]:
            yield warn(
                f"{kafka.dead_letter} takes {limits[kafka.dead_letter]:,} bytes, {kafka.input} "
                f"{limits[kafka.input]:,}: large rejects will be cut; raise its max.message.bytes"
            )
        states = MAX_SAVE_BYTES // max(model.bundle.manifest.state_bytes, 1)
        if states < MANY:
            yield warn(f"states are so large that one save holds only {states} of them")

    def access(self) -> Iterator[Finding]:
        """Ask what the brokers allow us, where they tell."""
        kafka = self._kafka
        alert = self._config.emit.alert_topic
        missing = missing_rights(kafka, self._config.connection, self._limit_s, alert)
        yield from map(fail, missing)
        if missing:
            return
        if self._tells_rights():
            written = f"{kafka.output}{alert and f', {alert}'} and {kafka.dead_letter}"
            yield ok(f"may read {kafka.input}, write {written}, and join {kafka.group}")
        else:
            yield warn("the brokers do not tell our rights: what is missing shows when it is used")

    def group(self) -> Iterator[Finding]:
        """Ask who else is in the group, and whether we may be."""
        name = self._kafka.group
        try:
            found = self._described(name)
        except KafkaException as error:
            if error.args[0].code() != ClientError.GROUP_AUTHORIZATION_FAILED:
                raise
            yield Finding("skip", f"not looked at: no right to {name}, see access")
            return
        members, assignor = len(found.members), found.partition_assignor
        if found.state in (ConsumerGroupState.DEAD, ConsumerGroupState.UNKNOWN):
            yield ok(f"{name} is new: nobody has used it")
        elif not members:
            yield ok(f"{name} has no members now")
        elif not assignor:
            yield warn(f"{name} has {members} members and is rebalancing: look again in a moment")
        elif assignor != ASSIGNOR:
            yield fail(
                f"{name} has {members} members that are no keyfold workers (assignor "
                f"{assignor!r}): choose another kafka.group, or stop them"
            )
        else:
            yield warn(f"{name} has {members} workers now: one more would share their partitions")

    def session(self) -> Iterator[Finding]:
        """Ask whether the brokers allow our session timeout; silent where they won't say."""
        limits = limits_ms(self._config.connection)
        if limits is None:
            return
        least_ms, most_ms = limits
        if least_ms <= self._kafka.session_timeout_s * 1000 <= most_ms:
            yield ok(f"a session timeout of {self._kafka.session_timeout_s:g} s is allowed")
        else:
            yield fail(refused(self._kafka, limits))

    def transactions(self) -> Iterator[Finding]:
        """Ask whether exactly-once outputs would be let through."""
        if not self._config.worker.exactly_once:
            yield ok("worker.outputs is at-least-once: no transactions needed")
            return
        kafka = self._kafka
        identity = f"{kafka.group}:{kafka.input}:0"
        try:
            lacking = missing_right(self._config.connection, identity, kafka.group, self._limit_s)
        except (KafkaError, TimeoutError) as error:
            why = str(error) or "no answer"
            raise Crash(f"transactional id {identity}: {why}") from error
        if lacking is not None:
            operation, kind = lacking
            yield self._lacks(operation, kind, kafka.group if kind == "group" else identity)
            return
        yield ok(f"may write under transactional ids {kafka.group}:{kafka.input}:*")

    # -- asking ------------------------------------------------------------------------------------

    def _admin(self) -> AdminClient:
        if self._client is None:
            self._client = AdminClient({**self._config.connection.librdkafka(), "log_level": 0})
        return self._client

    def _described(self, group: str) -> Any:
        """Describe a group. Raises KafkaException."""
        deadline = time.monotonic() + self._limit_s
        while True:
            asked: Any = self._admin().describe_consumer_groups(
                [group], include_authorized_operations=True, request_timeout=self._limit_s
            )
            try:
                return asked[group].result()
            except KafkaException as error:
                if error.args[0].code() not in COME_BACK or time.monotonic() > deadline:
                    raise
                time.sleep(AGAIN_S)

    def _configs(self, topic: str) -> Mapping[str, str]:
        """Return a topic's settings. Raises KafkaException, also where we may not see them."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        asked = self._admin().describe_configs([resource], request_timeout=self._limit_s)
        return {name: entry.value for name, entry in asked[resource].result().items()}

    def _max_bytes(self, topic: str) -> int:
        try:
            return int(self._configs(topic).get("max.message.bytes", DEFAULT_MESSAGE_BYTES))
        except KafkaException:
            return DEFAULT_MESSAGE_BYTES  # not ours to see: what the worker assumes, too

    def _tells_rights(self) -> bool:
        asked = self._admin().describe_topics(
            TopicCollection([self._kafka.input]), include_authorized_operations=True,
            request_timeout=self._limit_s,
        )  # fmt: skip
        try:
            return bool(asked[self._kafka.input].result().authorized_operations)
        except KafkaException:
            return False

    def _lacks(self, operation: str, kind: str, name: str) -> Finding:
        return fail(refusals.acl(self._config.connection, operation, kind, name))


def _retention(topic: str, retention_ms: int) -> Finding:
    if retention_ms < 0:
        return ok(f"{topic} keeps its records for ever")
    days = retention_ms / DAY_MS
    text = f"{topic} keeps its records for {days:.3g} days (retention.ms)"
    if retention_ms < DAY_MS:
        return warn(f"{text}: a worker that is away for longer loses events; raise it")
    return ok(f"{text}: so long may a worker be away, and so far back can it fold again")


def _prediction_bytes(model: Model, topic: str) -> int:
    """Return the bytes of a prediction as it would be, 0 when no example can be made."""
    if model.bundle.manifest.events.decoder:
        return 0
    manifest, events = model.bundle.manifest, example_events(model.bundle)
    records = [
        Taken(at, event.time_ms, KEY.encode(), record_value(manifest, event))
        for at, event in enumerate(events)
    ]
    outputs = Trial(model, topic).run([(0, records)])
    # None where an answer is later than the examples are long.
    return max((len(payload) for _, one in outputs for payload in one.payloads), default=0)
