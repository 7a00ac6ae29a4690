"""Where the demo plays: the broker, Valkey, the topics, and the worker's settings.

Owns starting and ending the services, the topics' names and the worker.toml that a person can read
afterwards. Knows nothing of what is sent or served. Called by demo.py; the other steps are handed
the Scene.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from keyfold.worker.send.sender import create_topic
from local.demo_story import Story
from local.services import EmbeddedKafka, Valkey

PARTITIONS = 4
DELETE_S = 10.0  # longest wait for topics to go

SETTINGS = """\
# Written by the demo; every setting is explained in worker/config.py.
[kafka]
brokers = "{brokers}"
input = "{events}"
output = "{predictions}"
dead_letter = "{rejects}"
group = "{group}"
session_timeout_s = 6.0  # how soon a killed worker's partitions are given to another one

[redis]
url = "{redis}"

[worker]
bundle = "{bundle}"
start = "earliest"
save_every_ms = 250  # between two saves; a kill repeats what was put out since the last one
metrics_every_s = 2.0
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything the commands need to know."""

    folder: Path  # of logs, settings and results
    brokers: str  # "host:port,host:port"
    broker: str  # name and version, for the summary
    redis: str  # URL
    events: str  # input topic
    predictions: str  # output topic
    rejects: str  # dead-letter topic
    group: str  # consumer group
    partitions: int = PARTITIONS  # of events and of predictions

    @property
    def config(self) -> Path:
        """Return where the worker's settings are."""
        return self.folder / "worker.toml"

    def write_config(self, bundle: Path) -> None:
        """Write the worker's settings."""
        names = ("brokers", "events", "predictions", "rejects", "group", "redis")
        values = {name: getattr(self, name) for name in names}
        self.config.write_text(SETTINGS.format(bundle=bundle, **values), encoding="utf-8")


@contextmanager
def open_scene(folder: Path, brokers: str | None, story: Story) -> Iterator[Scene]:
    """Start the services, or use a person's own Kafka; everything is stopped at the end."""
    with ExitStack() as stack:
        if brokers is None:
            story.step(
                "Start Kafka and Valkey",
                "The embedded broker (Tansu) and Valkey, on free ports of 127.0.0.1.",
            )
            kafka = stack.enter_context(EmbeddedKafka(folder / "kafka"))
            address, broker, prefix = kafka.address, kafka.description, ""
        else:
            story.step(
                "Start Valkey", f"For the states; the events go through your Kafka at {brokers}."
            )
            # Other topics live there: the names are this run's own.
            address, broker = brokers, f"your Kafka at {brokers}"
            prefix = f"keyfold-demo-{time.strftime('%Y%m%d-%H%M%S')}-"
        valkey = stack.enter_context(Valkey())
        story.note(f"Kafka {address}   Valkey {valkey.address}")
        scene = Scene(
            folder, address, broker, valkey.url, f"{prefix}events", f"{prefix}predictions",
            f"{prefix}rejects", f"{prefix}demo",
        )  # fmt: skip
        if brokers is not None:
            stack.callback(_delete_topics, scene)
        _create_topics(scene)
        yield scene


def _create_topics(scene: Scene) -> None:
    """Create the three topics; predictions need as many partitions as events."""
    create_topic(scene.brokers, scene.events, PARTITIONS)
    create_topic(scene.brokers, scene.predictions, PARTITIONS)
    create_topic(scene.brokers, scene.rejects, 1)


def _delete_topics(scene: Scene) -> None:
    """Remove the topics from a person's own Kafka."""
    admin = AdminClient({"bootstrap.servers": scene.brokers, "log_level": 2})
    for done in admin.delete_topics([scene.events, scene.predictions, scene.rejects]).values():
        with suppress(KafkaException, TimeoutError):  # left behind: nothing depends on it
            done.result(DELETE_S)
