"""Records whose key is not their key field: said in one line, with the two ways out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from first_run import FirstRun
from formatted_bundle import make_formatted
from live_worker import Key, Serving, Value, make_events

from keyfold.export import formats
from keyfold.export.bundle import Bundle
from keyfold.export.event_spec import EventSpec
from keyfold.export.formats import format_for
from keyfold.training.labels import Labels
from keyfold.training.settings_data import Data
from keyfold.training.sources import Chunk
from keyfold.worker import key_field
from keyfold.worker.config import read_config
from keyfold.worker.errors import SetUpError
from keyfold.worker.kafka.samples import Taken
from keyfold.worker.key_field import KeyReader, agreement, expect_key_field, two_ways_out


def records(*pairs: tuple[Key, Value]) -> list[Taken]:
    return [Taken(offset, 1, key, value) for offset, (key, value) in enumerate(pairs)]


def test_records_that_agree_are_counted() -> None:
    reader = KeyReader("machine", EventSpec())
    same = records((b"a", b'{"machine":"a"}'), (b"5", b'{"machine":5}'), (b"x", b"{}"))
    found = agreement(reader, "t", [(0, same)])
    assert (found.records, found.differ, found.example) == (2, 0, "")


def test_records_without_a_readable_field_are_counted_and_tombstones_are_not() -> None:
    reader = KeyReader("machine", EventSpec())
    values: tuple[Value, ...] = (b"{}", b'{"machine":true}', b'{"machine":[1]}', b"no JSON", None)
    some = records((b"a", b'{"machine":"a"}'), *((b"a", value) for value in values))
    found = agreement(reader, "t", [(0, some)])
    assert (found.records, found.differ, found.without) == (1, 0, 4)


NUMBERS = (b"3", b"3.0", b"1e3", b"3.5", b"-0.0", b"1e300", b"9007199254740993", b'"3.0"')


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_the_key_that_training_and_keyfold_send_give(number: bytes) -> None:
    value = b'{"key":%s}' % number
    chunk = Chunk("f", ["row 1"], None, [value], np.zeros(1, np.int64))
    (trained,) = Labels(Data(features=("a",), key_field="key"), keyed=False).read(chunk).keys
    assert KeyReader("key", EventSpec("key")).key(value) == trained


@pytest.mark.parametrize(
    ("number", "key"), [(b"3.0", b"3"), (b"1e3", b"1000"), (b"3.5", b"3.5"), (b"7", b"7")]
)
def test_a_number_written_as_a_float_is_a_key(number: bytes, key: bytes) -> None:
    assert KeyReader("key", EventSpec()).key(b'{"key":%s}' % number) == key


def test_first_record_that_differs_is_the_example() -> None:
    reader = KeyReader("machine", EventSpec())
    mixed = records(
        (b"a", b'{"machine":"a"}'), (b"b", b'{"machine":"a"}'), (None, b'{"machine":1}')
    )
    found = agreement(reader, "t", [(3, mixed)])
    assert (found.records, found.differ, found.example) == (3, 2, "t:3:1")
    line = two_ways_out("machine", found, "t", "w.toml")
    assert "is not the field 'machine' in 2 of 3 records of t (first at t:3:1)" in line
    assert "\n" not in line


def hook(value: bytes) -> dict[str, str]:
    """Decode what is not JSON."""
    return {"machine": value.decode()}


def test_field_is_read_through_the_bundle_s_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "json_of", lambda name: lambda value: json.dumps(
        hook(value)).encode())  # fmt: skip
    reader = KeyReader("machine", EventSpec(decoder="some.module:hook"))
    assert reader.key(b"m-1") == b"m-1"


def test_field_is_read_in_every_format_that_holds_it(tmp_path: Path) -> None:
    for name in ("msgpack", "avro"):
        if name == "avro":
            pytest.importorskip("fastavro")
        manifest = make_formatted(tmp_path, name).manifest
        value = format_for(manifest.events, manifest.features).of_json(
            b'{"a":1,"b":2,"time":3,"key":"m-1"}'
        )
        reader = KeyReader("key", manifest.events)
        assert (reader.key(value), reader.key(b"\xc1"), reader.key(None)) == (b"m-1", None, None)


def test_packed_records_hold_no_key(tmp_path: Path) -> None:
    events = EventSpec("key", "time", format="packed")
    assert KeyReader("key", events).key(bytes(16)) is None
    config = read_config(None, ["kafka.brokers=127.0.0.1:1", "kafka.input=i", "kafka.output=o",
                                "kafka.group=g", "redis.url=redis://h/0", "worker.bundle=b",
                                "kafka.key_field=machine"], {})  # fmt: skip
    with pytest.raises(SetUpError) as error:
        expect_key_field(config, events, "w.toml")  # before Kafka is asked
    assert str(error.value) == (
        "kafka.key_field: expected none with packed records, which hold no 'machine': their "
        "producers set the record key"
    )


def keyed(count: int, right: bool) -> list[tuple[Key, Value]]:
    """Return events that hold their key, or another one, in the field `key`."""
    made: list[tuple[Key, Value]] = []
    for key, value in make_events(count, 5):
        name = (key or b"").decode() if right else "x"
        made.append((key, json.dumps({**json.loads(value or b""), "key": name}).encode()))
    return made


@pytest.mark.parametrize("right", [True, False])
def test_only_keys_that_differ_are_refused_before_anything_is_joined(
    serving: Serving,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    right: bool,
) -> None:
    first = FirstRun(serving, capsys)
    serving.send(keyed(60, right))
    config = read_config(first.file, (), {})
    monkeypatch.setattr(key_field, "configured_key_field", lambda config: "key")
    if right:
        expect_key_field(config, bundle.manifest.events, "w.toml")
        return
    with pytest.raises(SetUpError, match=r"kafka\.key_field: .* let the producers set it"):
        expect_key_field(config, bundle.manifest.events, "w.toml")


def test_topic_without_records_is_not_refused(
    serving: Serving,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = read_config(FirstRun(serving, capsys).file, (), {})
    monkeypatch.setattr(key_field, "configured_key_field", lambda config: "key")
    expect_key_field(config, bundle.manifest.events, "w.toml")


def test_worker_with_another_key_field_ends_with_one_line_and_nothing_done(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.send(keyed(60, right=False))
    first = FirstRun(serving, capsys)
    first.settings["kafka"]["key_field"] = "key"
    worker = serving.worker(kafka__key_field="key")
    assert worker.wait(60) == 2, worker.log_tail()
    (line,) = worker.log.read_text().splitlines()
    assert line.startswith("keyfold-worker: kafka.key_field: the record key is not the field 'key'")
    assert "keyfold-worker repartition worker.toml --from THEIR_TOPIC" in line
    assert serving.redis.dbsize() == 0
