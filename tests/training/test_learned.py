"""What training learns of the inputs is what the decoder and the front do when they serve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyfold.export.events import Decoder
from keyfold.export.front import Front
from keyfold.export.states import cold
from keyfold.export.tables import read_rows
from keyfold.training.config import Data, Forecast, Split
from keyfold.training.data import DataError, EventLog, build
from keyfold.training.learned import MOST_VALUES, learn
from keyfold.training.sources import form_of, read_files
from keyfold.training.split import split, whole

DATA = Data(
    features=("temp", "r.vib", "on", "mode", "site"),
    time_field="t",
    time_unit="s",
    booleans=("on",),
    categories=("mode", "site"),
    missing_last=("temp", "mode"),
    missing_mask=("r.vib", "on", "site"),
    since_last=True,
)


def events() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    found = []
    for i in range(300):
        event: dict[str, Any] = {"key": f"k{i % 3}", "t": 5 * i + int(draw.integers(0, 4))}
        event["temp"] = None if draw.random() < 0.3 else float(draw.normal(20, 3))
        if draw.random() < 0.7:
            event["r"] = {"vib": float(draw.normal())}
        event["on"] = [True, False, None][int(draw.integers(0, 3))]
        event["mode"] = ["auto", "hand", 7, None][int(draw.integers(0, 4))]
        event["site"] = f"s{int(draw.integers(0, 80))}"
        found.append(event)
    return found


def read(data: Data, folder: Path) -> EventLog:
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events()), encoding="utf-8")
    return build(data, read_files([str(file)]), keyed=False)


def test_x_is_what_decoder_and_front_give_with_the_learned_spec(tmp_path: Path) -> None:
    log = read(DATA, tmp_path)
    train = split(log.sequences, Split(by="order", validation_share=0.3)).train
    made = learn(log, train)
    decoder = Decoder(made.events, made.features, made.targets)
    front = Front.of(made.features)
    assert front is not None
    for sequence in made.sequences:
        mine = [json.dumps(e).encode() for e in events() if e["key"] == sequence.key]
        decoded = decoder.decode(mine, np.zeros(len(mine), np.int64))
        assert not decoded.rejects
        lengths = np.array([len(mine)])
        x, _ = front.run(decoded.x[None], decoded.times_ms[None], lengths, cold(front.states, 1))
        assert np.array_equal(sequence.x, x[0])
        assert decoded.observed is not None
        assert sequence.observed is not None
        assert np.array_equal(sequence.observed, decoded.observed, equal_nan=True)


def test_means_and_categories_come_from_the_training_part_alone(tmp_path: Path) -> None:
    log = read(DATA, tmp_path)
    train = split(log.sequences, Split(by="order", validation_share=0.3)).train
    fields = {field.name: field for field in learn(log, train).features.fields}
    known = [
        e["temp"]
        for key in ("k0", "k1", "k2")
        for e in [e for e in events() if e["key"] == key][:70]
        if e["temp"] is not None
    ]
    assert fields["temp"].fill == pytest.approx(np.mean(known), rel=1e-6)
    assert fields["mode"].values == ("7", "auto", "hand")
    assert len(fields["site"].values) == MOST_VALUES
    everything = {f.name: f for f in learn(log, whole(log.sequences)).features.fields}
    assert everything["temp"].fill != fields["temp"].fill


def test_a_plain_log_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"key":"k","a":1}\n{"key":"k","a":2}\n', encoding="utf-8")
    log = build(Data(features=("a",)), read_files([str(file)]), keyed=False)
    assert learn(log, whole(log.sequences)) is log


def test_a_field_without_a_value_in_training_is_named(tmp_path: Path) -> None:
    log = read(replace(DATA, features=(*DATA.features, "gone"), missing="mask"), tmp_path)
    with pytest.raises(DataError, match="'gone': expected values in the training part, got none"):
        learn(log, whole(log.sequences))


def test_standardised_fields_are_no_targets() -> None:
    data = Data(features=("a", "b"), standardise_by_key=("a",))
    from keyfold.training.data import targets_of

    assert targets_of(data, Forecast()) == ("b",)
    with pytest.raises(DataError, match="expected numbers among data"):
        targets_of(Data(features=("a",), standardise_by_key=("a",)), Forecast())


def test_static_tables_reach_the_decoder(tmp_path: Path) -> None:
    table = tmp_path / "machines.csv"
    table.write_text("key,power\nk1,50\nk2,70\n", encoding="utf-8")
    log_file = tmp_path / "log.jsonl"
    log_file.write_text(
        '{"key":"k1","a":1}\n{"key":"k2","a":null}\n{"key":"k2","a":3,"power":1}\n',
        encoding="utf-8",
    )
    data = Data(
        features=("a", "power"), files=(str(log_file),), static=str(table),
        missing_last=("a",),
    )  # fmt: skip
    log = build(data, read_files(data.files, data), keyed=False)
    assert log.sequences[0].x[:, 2].tolist() == [50]
    assert log.sequences[1].x[:, 2].tolist() == [70, 1]  # an event's own member wins
    assert log.sequences[1].x[0, 1] == 1  # missing
    table.write_text("key,power\nk1,50\nk1,70\n", encoding="utf-8")
    with pytest.raises(
        Exception, match=r"machines\.csv, row 2: field 'key': expected each key once"
    ):
        build(data, read_files(data.files, data), keyed=False)


def test_training_reads_records_with_the_hook_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook_of_training.py").write_text(
        "def read(value):\n"
        "    name, number, label = value.decode().split(',')\n"
        "    return {'key': name, 'a': float(number), 'y': float(label)}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "log.jsonl"
    file.write_text("k,1,10\nnonsense\nk,2,20\n", encoding="utf-8")
    data = Data(
        features=("a",), label="y", kind="regression", decoder="hook_of_training:read",
        max_reject_share=1.0,
    )  # fmt: skip
    log = build(data, read_files([str(file)]), keyed=False)
    assert log.sequences[0].x.tolist() == [[1], [2]]
    assert log.sequences[0].labels.tolist() == [10, 20]
    assert log.events.decoder == "hook_of_training:read"
    assert log.rejects == (f"{file}, line 2: the decoder hook refused it (ValueError)",)


def test_a_cell_that_stands_for_nothing_is_learned_as_it_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("key,a,mode\nk,1,run\nk,-999,off-line\nk,3,idle\n", encoding="utf-8")
    data = Data(
        features=("a", "mode"), categories=("mode",), files=(str(file),), missing="mask",
        null_words=("-999", "off-line"),
    )  # fmt: skip
    log = build(data, read_files(data.files, data), keyed=False)
    log = learn(log, whole(log.sequences))
    sent = [value for _, value in read_rows(file, form_of(data))]
    assert json.loads(sent[1]) == {"key": "k", "a": None, "mode": None}
    served = Decoder(log.events, log.features).decode(sent, np.zeros(3, np.int64))
    assert np.array_equal(log.sequences[0].x, served.x)
    assert log.features.columns == ("a", "a?", "mode=idle", "mode=run", "mode?")


def joined(folder: Path, events: list[dict[str, Any]], table: str, field: str) -> EventLog:
    (folder / "machines.csv").write_text(table, encoding="utf-8")
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    data = Data(
        features=(field,), files=(str(file),), key_field="meta.id", missing="mask",
        static=str(folder / "machines.csv"),
    )  # fmt: skip
    return build(data, read_files(data.files, data), keyed=False)


def test_a_static_table_is_joined_by_the_path_of_the_key(tmp_path: Path) -> None:
    log = joined(tmp_path, [{"meta": {"id": 3.0}}], "meta.id,power\n3,50\n", "power")
    assert log.sequences[0].x.tolist() == [[50, 0]]
    log = joined(
        tmp_path, [{"meta.id": "m1", "meta": {"id": "m2"}}], "meta.id,power\nm1,7\n", "power"
    )
    assert log.sequences[0].x.tolist() == [[7, 0]]


def test_a_static_table_fills_in_what_is_null_and_nothing_else(tmp_path: Path) -> None:
    event = {"meta": {"id": "m1"}}
    stats: list[dict[str, Any]] = [
        {"st.power": None}, {"st": {"power": None}}, {"st": {"power": 2}}, {"st.power": 3},
    ]  # fmt: skip
    events = [{**event, **stat} for stat in stats]
    log = joined(tmp_path, events, "meta.id,st.power\nm1,50\n", "st.power")
    assert log.sequences[0].x[:, 0].tolist() == [50, 50, 2, 3]


def test_keys_that_a_static_table_does_not_have_are_counted(tmp_path: Path) -> None:
    events = [{"meta": {"id": key}} for key in ("m2", "m1", "m3", "m2")]
    log = joined(tmp_path, events, "meta.id,power\nm1,50\n", "power")
    assert log.unknown == ("m2", "m3")
