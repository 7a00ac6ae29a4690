"""A worker that is one of several under one parent (processes.py): what is different for it.

Owns that, and nothing else is: its port, and that one of them says when there are more workers than
partitions. Called by worker/cli.py.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from keyfold.worker.config import Config
from keyfold.worker.errors import Crash

log = logging.getLogger(__name__)


def settings_of(config: Config, number: int) -> Config:
    """Return the settings of worker `number`: those of a single one, on a port of its own."""
    port = config.worker.web_port
    own = replace(config.worker, processes=1, web_port=port + number if port else 0)
    return replace(config, worker=own)


def say_if_idle(config: Config, workers: int) -> None:
    """Warn of workers that no partition is left for; called in one of them."""
    from keyfold.worker.kafka.log import KafkaLog  # a client that nothing else here has need of

    topic = config.kafka.input
    # Brokers have just answered; if they do not now, nothing but this line is lost.
    with suppress(Crash), KafkaLog(config.connection) as log_of_events:
        partitions = log_of_events.partitions(topic)
        if workers > partitions:
            log.warning(
                "worker.processes = %d: topic %r has %d partitions only: %d of the workers will "
                "have none", workers, topic, partitions, workers - partitions,
            )  # fmt: skip
