"""Topics of MessagePack, packed numbers and Avro: filled from a file, served, verified exactly."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from formatted_bundle import FORMATS, make_formatted
from live_worker import Serving, make_events

from keyfold.export.bundle import Bundle
from keyfold.worker.errors import SetUpError
from keyfold.worker.first_day import init
from keyfold.worker.repartition.cli import main as repartition
from keyfold.worker.send import cli as send
from keyfold.worker.verify.cli import main as verify
from keyfold.worker.verify.findings import Fault

EVENTS = 1000


@pytest.fixture(scope="module", params=FORMATS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle of a format."""
    if request.param == "avro":
        pytest.importorskip("fastavro")
    return make_formatted(tmp_path_factory.mktemp("bundles"), request.param)


def test_a_topic_filled_from_a_file_is_served_as_the_oracle_folds_it(
    serving: Serving, tmp_path: Path, bundle: Bundle
) -> None:
    log = tmp_path / "log.jsonl"
    with log.open("w") as file:
        for key, value in make_events(EVENTS, 30):
            event = json.loads(value or b"")
            file.write(json.dumps({**event, "key": (key or b"").decode()}) + "\n")
    flags = ["--brokers", serving.kafka.address, "--topic", serving.input]
    assert send.main([str(log), *flags, "--bundle", str(bundle.path)]) == 0
    first = serving.records(serving.input)[0].value()
    looks = {"msgpack": b"\x84", "packed": struct.pack("<q", 1_700_000_000_000)[4:8],
             "avro": b"\0\0\0\0\x2a"}  # fmt: skip
    name = bundle.manifest.events.format
    assert first[4:8] == looks[name] if name == "packed" else first.startswith(looks[name])
    # What is none of the format costs its record alone.
    serving.send([(b"key-1", b'{"a":1,"b":2,"time":3}'), (b"key-2", b""), (b"key-3", b"\xff" * 99)])
    with serving.running(worker__passthrough="time,b") as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(EVENTS, passthrough=("time", "b"))
    payload = json.loads(serving.records(serving.output)[0].value())
    assert payload["event"]["time"] == payload["time"]
    assert findings.to_json()["rejects"] == 3
    assert not findings.counts[Fault.LOST]
    assert len(serving.records(serving.output)) == EVENTS
    assert len(serving.records(serving.dead_letter)) == 3


def test_init_shows_events_and_check_and_score_take_them(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "worker.toml"
    assert init.main([str(bundle.path), "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    rows = [line.removeprefix("#   ") for line in lines if line.startswith('#   {"key"')]
    told = [json.loads(line[4:]) for line in lines if line.startswith('#   {"id"')]
    assert len(rows) == len(told) == 3
    # Rows of files are JSON, whatever the topic holds.
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    scored = tmp_path / "scored.jsonl"
    assert verify([
        "score", str(tmp_path / "rows.jsonl"), str(bundle.path), "--out", str(scored)
    ]) == 0  # fmt: skip
    found = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [event["output"] for event in found] == [event["output"] for event in told]


def test_repartition_says_that_packed_records_hold_no_key(tmp_path: Path) -> None:
    bundle = make_formatted(tmp_path, "packed")
    config = tmp_path / "worker.toml"
    config.write_text(
        '[kafka]\nbrokers = "h:1"\ninput = "i"\noutput = "o"\ngroup = "g"\n'
        f'[redis]\nurl = "redis://h/0"\n[worker]\nbundle = "{bundle.path}"\n'
    )
    with pytest.raises(SetUpError) as error:
        repartition([str(config), "--from", "theirs"])
    assert str(error.value) == (
        "kafka.key_field: expected none with packed records, which hold no 'key': their producers "
        "set the record key"
    )
