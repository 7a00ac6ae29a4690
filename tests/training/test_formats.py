"""Records of a topic in other formats than JSON: settings, and how they become a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from keyfold.export.events import EventSpec
from keyfold.export.formats import format_of
from keyfold.training.config import Config, Data, Kafka, SettingsError, Split, read_config
from keyfold.training.data import read_log
from keyfold.training.sources import read_topic
from local.service_fixtures import MakeTopic
from local.services import KafkaService

SCHEMA = json.dumps({
    "type": "record", "name": "R",
    "fields": [
        {"name": "a", "type": "double"}, {"name": "y", "type": ["null", "double"]},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
})  # fmt: skip
PACKED = {"features": ("a",), "format": "packed"}


def refused(tmp_path: Path, data: str, more: str = "", kafka: bool = True) -> str:
    """Return why settings are refused."""
    source = '[kafka]\nbrokers = "h:1"\ntopic = "t"\n' if kafka else ""
    split = '[split]\nby = "key"\nvalidation_share = 0.2\n'
    file = tmp_path / "training.toml"
    file.write_text(f'[data]\nfeatures = ["a"]\n{data}\n{split}{source}{more}')
    with pytest.raises(SettingsError) as error:
        read_config(file, environment={})
    return str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('booleans = ["a"]', "data.booleans: expected none in packed records, got 'a'"),
        ('categories = ["a"]', "data.categories: expected none in packed records, got 'a'"),
        ('missing_last = ["a"]', "data.missing_last: expected none in packed records, got 'a'"),
        ('missing = "mask"', "data.missing: expected 'error' with packed records, got 'mask'"),
        ('time_field = "t"\ntime_unit = "iso"', "data.time_unit: expected 'ms', 's', 'us' or 'ns'"),
        ('time_field = "a"', "data.time_field: expected no feature with packed records, got 'a'"),
        ('label = "y"\nkind = "regression"', "data.label: expected labels.files or data.files"),
        ('decoder = "m:f"', "data.format: expected 'json' with a decoder, got 'packed'"),
        ("avro_id = 1", "data.avro_id: expected none with format 'packed', only with 'avro'"),
    ],
)
def test_what_packed_records_cannot_hold_is_refused_by_setting(
    tmp_path: Path, data: str, said: str
) -> None:
    assert said in refused(tmp_path, f'format = "packed"\n{data}')


def test_avro_is_refused_without_a_schema_or_with_another_one(tmp_path: Path) -> None:
    pytest.importorskip("fastavro")
    assert "data.avro_schema: expected the schema" in refused(tmp_path, 'format = "avro"')
    assert "data.format: expected one of 'json'" in refused(tmp_path, 'format = "xml"')
    (tmp_path / "events.avsc").write_text(SCHEMA)
    named = f'format = "avro"\navro_schema_file = "{tmp_path / "events.avsc"}"\n'
    said = refused(tmp_path, f'{named}time_field = "when"')
    assert "data.avro_schema: expected a field 'when', got none" in said
    said = refused(tmp_path, f'{named}time_field = "t"\ntime_unit = "us"')
    assert "data.time_unit: expected 'ms' for 't', got 'us'" in said


def test_the_schema_s_text_goes_into_the_event_spec(tmp_path: Path) -> None:
    pytest.importorskip("fastavro")
    (tmp_path / "events.avsc").write_text(SCHEMA + "\n")
    file = tmp_path / "training.toml"
    file.write_text(
        '[data]\nfeatures = ["a"]\nfiles = ["x.csv"]\nformat = "avro"\navro_id = 3\n'
        f'avro_schema_file = "{tmp_path / "events.avsc"}"\n'
        '[split]\nby = "key"\nvalidation_share = 0.2\n'
    )
    events = read_config(file, environment={}).data.events()
    assert (events.format, events.avro_schema, events.avro_id) == ("avro", SCHEMA, 3)


def test_the_default_is_json_and_stands_nowhere() -> None:
    assert Data(features=("a",)).events() == EventSpec("key")


FORMATS: dict[str, dict[str, Any]] = {
    "msgpack": {"format": "msgpack"},
    "packed": {"format": "packed"},
    "avro": {"format": "avro", "avro_schema": SCHEMA, "avro_id": 9},
}


@pytest.fixture(params=FORMATS)
def filled(
    request: pytest.FixtureRequest, kafka: KafkaService, make_topic: MakeTopic
) -> tuple[Kafka, Data]:
    """Return a topic of a format with four events and two records that are none, and settings."""
    if request.param == "avro":
        pytest.importorskip("fastavro")
    data = Data(features=("a",), time_field="t", max_reject_share=0.5, **FORMATS[request.param])
    form = format_of(data.events(), data.features)
    name = make_topic("events", partitions=1)
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.address})
    for number in range(4):
        value = form.of_json(json.dumps({"a": number + 0.1, "y": 1.0, "t": number}).encode())
        producer.produce(name, value, b"k")
        if number % 2:
            producer.produce(name, b"\xc1", b"k")
    assert producer.flush(30) == 0
    return Kafka(brokers=kafka.address, topic=name, timeout_s=20), data


def test_a_topic_s_records_become_json_and_what_is_none_a_reject(
    filled: tuple[Kafka, Data], unique_name: Callable[[str], str]
) -> None:
    settings, data = filled
    (chunk,) = read_topic(settings, data=data)
    events = [json.loads(value or b"") for value in chunk.values]
    assert sorted(chunk.rejects) == [2, 5]
    assert [event["t"] for event in events if event] == [0, 1, 2, 3]
    assert [event["a"] for event in events if event] == pytest.approx([0.1, 1.1, 2.1, 3.1])
    (plain,) = read_topic(settings, data=replace(data, format="json", avro_schema="", avro_id=None))
    assert plain.values[0] != chunk.values[0]


def test_a_topic_of_a_format_is_learned_as_the_same_events_in_json(
    filled: tuple[Kafka, Data], tmp_path: Path
) -> None:
    settings, data = filled
    config = Config(data, Split("order", validation_share=0.25), kafka=settings)
    log = read_log(config)
    assert (log.records, log.rejected, log.events.format) == (6, 2, data.format)
    (sequence,) = log.sequences
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"key":"k","a":{n + 0.1},"t":{n}}}\n' for n in range(4)))
    from_file = replace(config, data=replace(data, files=(str(rows),)), kafka=Kafka())
    (same,) = read_log(from_file).sequences
    assert sequence.x.tobytes() == same.x.tobytes()
    assert sequence.times_ms.tolist() == same.times_ms.tolist() == [0, 1, 2, 3]
