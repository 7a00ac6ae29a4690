"""keyfold-send writes rows in the bundle's format, and names a row that it cannot hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from formatted_bundle import make_formatted
from mock_kafka import MockKafka
from tiny_bundle import make_tiny_bundle

from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.send import cli as command

ROWS = "key,time,a,b\nk1,1700000000000,1,2.5\nk2,1700000001000,-3,0.5\n"


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    with MockKafka() as mock:
        yield mock


def values(kafka: MockKafka, topic: str) -> dict[bytes | None, bytes | None]:
    """Return a topic's values by key."""
    with KafkaLog(kafka.brokers) as log:
        return {
            message.key(): message.value()
            for partition in range(log.partitions(topic))
            for message in log.read(topic, partition, 0, log.extent(topic, partition).end)
        }


def sent(kafka: MockKafka, tmp_path: Path, name: str, rows: str = ROWS, *flags: str) -> int:
    kafka.create(f"to-{name}")
    (tmp_path / "log.csv").write_text(rows)
    where = ["--brokers", kafka.brokers, "--topic", f"to-{name}", *flags]
    return command.main([str(tmp_path / "log.csv"), *where])


def test_rows_become_messagepack(kafka: MockKafka, tmp_path: Path) -> None:
    bundle = make_formatted(tmp_path, "msgpack")
    assert sent(kafka, tmp_path, "msgpack", ROWS, "--bundle", str(bundle.path)) == 0
    found = values(kafka, "to-msgpack")
    assert msgspec.msgpack.decode(found[b"k2"] or b"") == {
        "key": "k2", "time": 1700000001000, "a": -3, "b": 0.5
    }  # fmt: skip


def test_the_bundle_of_the_settings_says_the_format_even_where_the_key_is_given(
    kafka: MockKafka, tmp_path: Path
) -> None:
    bundle = make_formatted(tmp_path, "packed")
    config = tmp_path / "worker.toml"
    config.write_text(
        f'[kafka]\nbrokers = "{kafka.brokers}"\ninput = "to-packed"\noutput = "o"\ngroup = "g"\n'
        f'[redis]\nurl = "redis://h/0"\n[worker]\nbundle = "{bundle.path}"\n'
    )
    kafka.create("to-packed")
    (tmp_path / "log.csv").write_text(ROWS)
    assert command.main([str(tmp_path / "log.csv"), "--config", str(config), "--key", "key"]) == 0
    assert values(kafka, "to-packed") == {
        b"k1": struct.pack("<qff", 1700000000000, 1, 2.5),
        b"k2": struct.pack("<qff", 1700000001000, -3, 0.5),
    }


def test_a_file_is_read_as_the_bundle_says_even_where_the_key_is_given(
    kafka: MockKafka, tmp_path: Path
) -> None:
    bundle = make_tiny_bundle(tmp_path)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["provenance"]["table"] = {"separator": ";", "decimal": ",", "encoding": "latin-1"}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    config = tmp_path / "worker.toml"
    config.write_text(
        f'[kafka]\nbrokers = "{kafka.brokers}"\ninput = "to-german"\noutput = "o"\ngroup = "g"\n'
        f'[redis]\nurl = "redis://h/0"\n[worker]\nbundle = "{bundle.path}"\n'
    )
    kafka.create("to-german")
    log = tmp_path / "log.csv"
    log.write_bytes("Maschine;time;a\nPresse Süd;1;2,5\n".encode("latin-1"))
    assert command.main([str(log), "--config", str(config), "--key", "Maschine"]) == 0
    assert values(kafka, "to-german") == {
        "Presse Süd".encode(): '{"Maschine":"Presse Süd","time":1,"a":2.5}'.encode()
    }


def test_a_row_that_the_format_cannot_hold_is_named(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_formatted(tmp_path, "packed")
    rows = ROWS + "k3,1700000002000,,1\n"
    assert sent(kafka, tmp_path, "broken", rows, "--bundle", str(bundle.path)) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'log.csv'}, row 3: the event does not match the feature spec" in error
    assert "--from-row 3 --skip-broken leaves it out" in error
    assert len(values(kafka, "to-broken")) == 2
