"""Is the record's key the field of the event that should be the key?

Owns reading that field (kafka.key_field, else the bundle's) out of records and what is said where
the two differ. It moves no record: worker/repartition/cli.py does. Called by worker/cli.py before a
worker joins, worker/check/records.py and worker/repartition/cli.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from keyfold.export.columns import category_text
from keyfold.export.event_spec import EventSpec
from keyfold.export.formats import Rows, format_of
from keyfold.export.members import SCALAR, Members
from keyfold.worker.config import Config
from keyfold.worker.errors import Reject, SetUpError
from keyfold.worker.kafka.samples import Taken, both_ends, open_log, spread

PARTITIONS, LOOKED_AT = 16, 20  # looked at when a worker starts, and records at each end of them


def configured_key_field(config: Config) -> str:
    """Return kafka.key_field, "" where it is not set."""
    return config.kafka.key_field


class KeyReader:
    """Reads the key out of a record's value."""

    def __init__(self, field: str, events: EventSpec) -> None:
        self._members = Members({field: SCALAR})
        # Packed records hold numbers alone, and no key.
        packed = events.format == "packed"
        form = None if packed else format_of(events)
        self._rows = None if form is None else Rows(form, self._members.row, None)

    def key(self, value: bytes | None) -> bytes | None:
        """Return the field's text, None when there is no such field or it is no text or number."""
        if value is None or self._rows is None:
            return None
        try:
            row = self._rows.one(value)
        except Reject:
            return None
        ((found,),) = self._members.columns([row])
        text = None if isinstance(found, bool) else category_text(found)
        return None if text is None else text.encode()


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the record keys of some records agree with their key field."""

    records: int  # that have the field
    differ: int  # whose key is another one
    example: str  # where the first of these is, "" when there is none
    without: int = 0  # more records, with a value but without the field as text or a number


def agreement(
    reader: KeyReader, topic: str, sampled: Iterable[tuple[int, Iterable[Taken]]]
) -> Agreement:
    """Compare record keys with the field, over the records of some partitions."""
    records = differ = without = 0
    example = ""
    for number, taken in sampled:
        for record in taken:
            wanted = reader.key(record.value)
            if wanted is None:
                without += record.value is not None  # a tombstone has no fields
                continue
            records += 1
            if wanted != record.key:
                differ += 1
                example = example or f"{topic}:{number}:{record.offset}"
    return Agreement(records, differ, example, without)


def two_ways_out(field: str, found: Agreement, topic: str, file: str) -> str:
    """Say in one line what is wrong with the keys of a topic and what to do."""
    return (
        f"the record key is not the field {field!r} in {found.differ} of {found.records} records "
        f"of {topic} (first at {found.example}): let the producers set it as the record key, or "
        f"keep their topic as it is and fill {topic} from it: keyfold-worker repartition {file} "
        "--from THEIR_TOPIC"
    )


def refuse_packed(field: str, events: EventSpec) -> None:
    """Raise SetUpError where records are so written that no key can be read out of them."""
    if events.format == "packed":
        raise SetUpError(
            f"kafka.key_field: expected none with packed records, which hold no {field!r}: their "
            "producers set the record key"
        )


def expect_key_field(config: Config, events: EventSpec, file: str) -> None:
    """Refuse to serve a topic whose record keys are not kafka.key_field, where that is set.

    Looks at some of its records. Raises SetUpError, Crash.
    """
    field, topic = configured_key_field(config), config.kafka.input
    if not field:
        return
    refuse_packed(field, events)
    with open_log(config) as log:
        early, late = both_ends(log, topic, LOOKED_AT, spread(log.partitions(topic), PARTITIONS))
    sampled = ((sample.partition, sample.records) for sample in (*early, *late))
    found = agreement(KeyReader(field, events), topic, sampled)
    if found.differ:
        raise SetUpError(f"kafka.key_field: {two_ways_out(field, found, topic, file)}")
