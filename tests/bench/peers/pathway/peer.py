"""Peer: Pathway, a stateful reducer by key.

Written with its Kafka connectors and `groupby(...).reduce(stateful_many)`, its way to fold rows in
code of one's own. A reducer has one value per key, so that it holds the key's state and the
predictions of the events just folded; `to_stream` and `flatten` make them records of their own.
Events of one key that came within half a second are stepped in one call.

Its free licence (BSL 1.1, no key) allows this with up to 8 workers. Persistence is in its default
mode: the input is kept on disk and folded again after a restart; keeping the states themselves
(OPERATOR_PERSISTING) and exactly-once output need a licence key. acks=all, idempotent; after a
crash predictions may go out twice.
"""

# Runs in an environment of its own, whose packages are not where the types are checked.
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

from typing import Any

import orjson
import pathway as pw
from peers.step import Settings, Step

SNAPSHOT_MS = 10_000
# As its documentation asks for where a backlog is read; without it nothing goes out before all has
# been read. Both chosen by measurement.
COMMIT_MS, BACKLOG = 500, 50_000

settings, step = Settings.read(), Step()


@pw.reducers.stateful_many
def fold(
    state: tuple[bytes, tuple[tuple[int, bytes], ...]] | None,
    rows: list[tuple[list[Any], int]],
) -> tuple[bytes, tuple[tuple[int, bytes], ...]]:
    """Fold what came of one key; return its state and the payloads of these events."""
    # Rows that came together have no order: a key's are in one partition, in that of its offsets.
    came = sorted([(row[1].value["offset"], row) for row, _ in rows], key=lambda pair: pair[0])
    loaded = [orjson.loads(row[0]) for _, row in came]
    x = [[event[name] for name in settings.features] for event in loaded]
    outputs, after = step.several(x, state[0] if state is not None else step.cold)
    made = []
    for (offset, row), y in zip(came, outputs, strict=True):
        about = f"{settings.input}:{row[1].value['partition']}:{offset}"
        payload = orjson.dumps({"about": about, "output": {settings.output_name: y}})
        made.append((offset, payload))
    return after, tuple(made)


servers = {"bootstrap.servers": settings.brokers}
events = pw.io.kafka.read(
    {**servers, "group.id": settings.group, "auto.offset.reset": "earliest"},
    topic=settings.input,
    format="raw",
    with_metadata=True,
    name="events",
    autocommit_duration_ms=COMMIT_MS,
    max_backlog_size=BACKLOG,
    autogenerate_key=True,
)
folded = events.groupby(pw.this.key).reduce(
    pw.this.key, folded=fold(pw.this.data, pw.this._metadata)
)
told = folded.to_stream().select(pw.this.key, made=pw.this.folded[1]).flatten(pw.this.made)
told = told.select(pw.this.key, offset=pw.this.made[0], payload=pw.this.made[1])
pw.io.kafka.write(
    told,
    {**servers, "acks": "all", "enable.idempotence": "true", "partitioner": "murmur2_random"},
    settings.output,
    format="raw",
    key=pw.this.key,
    value=pw.this.payload,
    # Rows made together have no order: this keeps a key's predictions in that of its events, and
    # only what is written, be it as a header, can be sorted by.
    headers=[told.offset],
    sort_by=[told.offset],
)
if __name__ == "__main__":
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=pw.persistence.Config(
            pw.persistence.Backend.filesystem(str(settings.stores)),
            snapshot_interval_ms=SNAPSHOT_MS,
        ),
    )
