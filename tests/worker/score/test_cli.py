"""keyfold-verify score: a log file's predictions without Kafka are those of the offline fold."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.events import Anomaly, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.tables import Row, TableForm
from keyfold.worker.model import Model
from keyfold.worker.placement import NO_STREAM
from keyfold.worker.score import rows as score_rows
from keyfold.worker.score.cli import score
from keyfold.worker.score.rows import Source
from keyfold.worker.verify.cli import main
from keyfold.worker.verify.refold import Kind, OfflineStep, Refold

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

AFTER = 3000  # reset_after_ms
COUNT = 2500


def readings(seed: int = 0) -> list[dict[str, Any]]:
    """Events of 40 keys, some of which fall silent for too long; three rows are no events."""
    draw = np.random.default_rng(seed)
    now, rows = 1_700_000_000_000, []
    for _ in range(COUNT):
        now += int(draw.choice([1, 10, AFTER // 20]))
        a, b = (round(float(v), 3) for v in draw.normal(size=2))
        rows.append({"key": f"m{draw.zipf(1.4) % 40}", "time": now, "a": a, "b": b})
    rows[7]["a"] = None
    rows[9]["key"] = None
    rows[11]["b"] = "much"
    return rows


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def read(file: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"), reset_after_ms=AFTER)


def scored(bundle: Bundle, log: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    assert main(["score", str(log), str(bundle.path), "--out", str(out), *more]) == 0
    return read(out)


def refolded(bundle: Bundle, rows: list[dict[str, Any]]) -> Refold:
    """Fold the rows as keyfold-verify does: an own reading of key, time and order."""
    refold = Refold(OfflineStep(bundle))
    for number, row in enumerate(rows, 1):
        key = None if row["key"] is None else row["key"].encode()
        refold.fold(number, NO_STREAM, key, json.dumps(row).encode())
    return refold


def check(bundle: Bundle, rows: list[dict[str, Any]], got: list[dict[str, Any]], log: str) -> None:
    """Compare predictions with the offline fold, event by event."""
    refold = refolded(bundle, rows)
    places = [p for p in range(len(refold)) if refold.kind(p) is Kind.EVENT]
    assert [p["about"] for p in got] == [f"{log}:0:{refold.offset(place)}" for place in places]
    tolerance = bundle.manifest.tolerance * bundle.golden.scale()
    for place, prediction in zip(places, got, strict=True):
        expected = refold.expected(place)
        assert prediction["id"] == f"{log}:0:{refold.offset(place)}:0"
        assert prediction["key"] == expected.key.decode()
        assert (prediction["time"], prediction["steps"]) == (expected.time_ms, expected.steps)
        assert prediction["cold"] == (expected.steps == 1)
        assert abs(prediction["output"]["value"] - expected.output[0]) <= tolerance


def test_scored_predictions_equal_the_offline_fold(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_rows, "CHUNK", 97)  # states are carried from chunk to chunk
    rows = readings()
    got = scored(bundle, write_lines(tmp_path / "log.jsonl", rows), tmp_path / "out.jsonl")
    check(bundle, rows, got, "log.jsonl")
    assert len(got) == COUNT - 3
    assert sum(p["cold"] for p in got) > 45  # silent keys did start anew


def test_every_kind_of_file_gives_the_same_predictions(tmp_path: Path, bundle: Bundle) -> None:
    rows = readings()
    del rows[11]["b"]  # a Parquet column has one kind of value
    header = ["key", "time", "a", "b"]
    cells = [["" if r.get(n) is None else str(r.get(n)) for n in header] for r in rows]
    (tmp_path / "log.csv").write_text("\n".join(",".join(r) for r in [header, *cells]))
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "log.parquet")
    write_lines(tmp_path / "log.jsonl.gz", rows)
    expected = scored(bundle, write_lines(tmp_path / "log.jsonl", rows), tmp_path / "out.jsonl")
    for name in ("log.csv", "log.parquet", "log.jsonl.gz"):
        got = scored(bundle, tmp_path / name, tmp_path / "other.jsonl.gz")
        assert [p["id"] for p in got] == [p["id"].replace("log.jsonl", name) for p in expected]
        assert [p["output"] for p in got] == [p["output"] for p in expected]


def test_standard_input_and_output_make_a_pipe(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Stdin:
        buffer = io.BytesIO(
            b'{"key":"k","time":1,"a":1,"b":2}\n\n{"key":"k","time":2,"a":1,"b":2}\n'
        )

    monkeypatch.setattr("sys.stdin", Stdin)
    assert main(["score", "-", str(bundle.path), "--out", "-"]) == 0
    printed = capsysbinary.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in printed] == ["stdin:0:1:0", "stdin:0:3:0"]


def test_a_table_holds_what_the_lines_hold(tmp_path: Path, bundle: Bundle) -> None:
    log = write_lines(tmp_path / "log.jsonl", readings())
    lines = scored(bundle, log, tmp_path / "out.jsonl")
    assert main(["score", str(log), str(bundle.path), "--out", str(tmp_path / "out.parquet")]) == 0
    table = parquet.read_table(tmp_path / "out.parquet")
    assert str(table.schema.field("time").type) == "int64"
    assert str(table.schema.field("output.value").type) == "float"
    for name in ("id", "about", "key", "time", "steps", "cold", "bundle"):
        assert table[name].to_pylist() == [line[name] for line in lines]
    want = np.array([line["output"]["value"] for line in lines], np.float32)
    assert np.array_equal(table["output.value"].to_numpy(), want)


def test_a_table_of_classes_has_a_column_for_each(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, kind="classification")
    log = write_lines(tmp_path / "log.jsonl", readings())
    assert main(["score", str(log), str(bundle.path), "--out", str(tmp_path / "o.parquet")]) == 0
    table = parquet.read_table(tmp_path / "o.parquet")
    names = [f"output.probabilities.{label}" for label in ("calm", "odd", "wild")]
    every = np.stack([table[name].to_numpy() for name in names], axis=1)
    np.testing.assert_allclose(every.sum(axis=1), 1, atol=1e-5)
    best = [("calm", "odd", "wild")[n] for n in every.argmax(axis=1)]
    assert table["output.label"].to_pylist() == best


def test_a_forecast_scores_each_event_against_the_one_before_it(tmp_path: Path) -> None:
    outputs = OutputSpec.of_forecast(Forecast(("a",), (1, 3)), Anomaly((0.5,), 2.0, 0.01))
    features = FeatureSpec((Field("a", missing="last"), Field("b")), since_last=True)
    bundle = make_tiny_bundle(tmp_path, features=features, outputs=outputs)
    rows = readings()
    got = scored(bundle, write_lines(tmp_path / "log.jsonl", rows), tmp_path / "out.jsonl")
    assert len(got) == COUNT - 2  # a missing `a` is no reject here
    before: dict[str, float] = {}
    for prediction in got:
        row = rows[int(prediction["about"].rpartition(":")[2]) - 1]
        anomaly, forecast = before.get(row["key"]), prediction["output"]["forecast"]["a"]["1"]
        score_ = prediction["output"]["anomaly"]["score"]
        if anomaly is None or row["a"] is None:
            assert score_ is None
        else:
            assert score_ == pytest.approx(abs(row["a"] - anomaly) / 0.5, abs=1e-4)
        before[row["key"]] = forecast
    out = str(tmp_path / "o.parquet")
    assert main(["score", str(tmp_path / "log.jsonl"), str(bundle.path), "--out", out]) == 0
    table = parquet.read_table(out)
    scores = [p["output"]["anomaly"]["score"] for p in got]
    want = [None if s is None else np.float32(s) for s in scores]
    assert table["output.anomaly.score"].to_pylist() == want
    assert str(table.schema.field("output.anomaly.flag").type) == "bool"


def test_rejects_are_named_by_file_row_and_field(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_lines(tmp_path / "log.jsonl", readings())
    rejects = tmp_path / "rejects.jsonl"
    scored(bundle, log, tmp_path / "out.jsonl", "--rejects", str(rejects))
    assert [(line["file"], line["row"]) for line in read(rejects)] == [
        ("log.jsonl", 8), ("log.jsonl", 10), ("log.jsonl", 12),
    ]  # fmt: skip
    assert "'a'" in read(rejects)[0]["reason"] or "$.a" in read(rejects)[0]["reason"]
    assert read(rejects)[1]["reason"] == "field 'key': expected a key, got none"
    said = capsys.readouterr().err
    assert "3 rejects, in" in said
    assert f"{log}, line 10: field 'key': expected a key, got none" in said


def test_many_rejects_are_counted_and_the_first_are_shown(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("{\n" * 12)
    scored(bundle, log, tmp_path / "out.jsonl")
    said = capsys.readouterr().err
    assert "12 rejects:" in said
    assert "and 7 more; --rejects FILE keeps them all" in said


def test_rows_out_of_order_are_warned_of_and_can_be_sorted(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = readings()
    mixed = [rows[i] for i in np.random.default_rng(1).permutation(COUNT)]
    log = write_lines(tmp_path / "mixed.jsonl", mixed)
    scored(bundle, log, tmp_path / "out.jsonl")
    assert "events are earlier than one of their key before them (first: row" in (
        capsys.readouterr().err
    )
    got = scored(bundle, log, tmp_path / "out.jsonl", "--sort")
    assert "earlier" not in capsys.readouterr().err
    expected = scored(bundle, write_lines(tmp_path / "log.jsonl", rows), tmp_path / "e.jsonl")
    same = ("key", "time", "output", "steps")
    assert [[p[n] for n in same] for p in got] == [[p[n] for n in same] for p in expected]
    # The ids stay those of the rows in the file.
    row = int(got[0]["about"].rpartition(":")[2])
    assert mixed[row - 1]["time"] == got[0]["time"]


def test_events_are_taken_chunk_by_chunk(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_rows, "CHUNK", 100)
    taken, most = 0, 0

    class Endless(Source):
        def rows(self) -> Iterator[Row]:
            nonlocal taken
            for number in range(1, 10_001):
                taken += 1
                yield number, b'{"key":"k%d","time":%d,"a":1,"b":2}' % (number % 10, number)

    class Written:
        done = 0

        def write(self, payloads: Any) -> None:
            nonlocal most
            most = max(most, taken - self.done)
            self.done += len(payloads)

        def close(self) -> None: ...

    found = score(
        Endless("log", "key", TableForm()), Model(bundle), Written(), None, lambda rows: None
    )
    assert (found.rows, found.predictions, found.keys) == (10_000, 10_000, 10)
    assert most <= 100


def test_without_a_key_field_the_file_is_the_key(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path)
    log = tmp_path / "pump7.jsonl"
    log.write_text('{"time":1,"a":1,"b":2,"id":8}\n')
    assert main(["score", str(log), str(bundle.path), "--out", "-", "--key", "id"]) == 0
    source = Source(str(log), None, TableForm())
    records = score_rows.Recorder(source, bundle.manifest.events).records(list(source.rows()))
    assert records[0].key == b"pump7"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.csv", "--out", "o.jsonl"], "none.csv: expected an event log, got no such file"),
        (["log.txt", "--out", "o.jsonl"], "log.txt: expected one of .csv"),
        (["log.jsonl", "--out", "o.csv"], "--out o.csv: expected .jsonl, .ndjson (.gz too)"),
        (["log.jsonl", "--out", "log.jsonl"], "expected other files than the log"),
        (["log.jsonl", "--out", "none/o.jsonl"], "cannot be written: No such file or directory"),
        (["bad.csv", "--out", "o.jsonl"], "bad.csv, row 2: expected 2 cells"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "log.jsonl", readings())
    (tmp_path / "log.txt").write_text("")
    (tmp_path / "bad.csv").write_text("key,a\nk,1\nk,1,2,3\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    log, *more = arguments
    assert main(["score", log, str(bundle.path), *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_sorting_needs_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_tiny_bundle(tmp_path, time_field=None)
    log = write_lines(tmp_path / "log.jsonl", readings())
    assert main(["score", str(log), str(bundle.path), "--out", "-", "--sort"]) == 2
    assert "--sort: expected a bundle with a time field" in capsys.readouterr().err
