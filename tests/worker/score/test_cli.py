"""keyfold-verify score: a log file's predictions without Kafka are those of the offline fold."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.events import Anomaly, EventSpec, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.tables import Row, TableForm
from keyfold.worker.model import Model
from keyfold.worker.placement import NO_STREAM
from keyfold.worker.score import rows as score_rows
from keyfold.worker.score.rows import Source
from keyfold.worker.score.scoring import Sinks, score
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


def test_a_table_of_the_largest_probabilities_has_columns_for_each_rank(tmp_path: Path) -> None:
    outputs = OutputSpec("classification", ("calm", "odd", "wild"), top=2)
    bundle = make_tiny_bundle(tmp_path, kind="classification", outputs=outputs)
    log = write_lines(tmp_path / "log.jsonl", readings())
    assert main(["score", str(log), str(bundle.path), "--out", str(tmp_path / "o.parquet")]) == 0
    table = parquet.read_table(tmp_path / "o.parquet")
    assert table["output.top.0.label"].to_pylist() == table["output.label"].to_pylist()
    first, second = (table[f"output.top.{rank}.probability"].to_numpy() for rank in (0, 1))
    assert (first >= second).all()
    assert str(table.schema.field("output.top.1.label").type) == "string"
    assert "output.probabilities.calm" not in table.schema.names


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
        Endless("log", "key", TableForm()), Model(bundle), Sinks(Written()), lambda rows: None
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


# -- what a worker with settings would write -------------------------------------------------------


def settings(folder: Path, bundle: Bundle, text: str) -> str:
    """Write a worker's settings and return the file's name."""
    file = folder / "worker.toml"
    head = '[kafka]\nbrokers = "h:1"\ninput = "in"\noutput = "out"\n'
    file.write_text(f'{head}[worker]\nbundle = "{bundle.path}"\n{text}', encoding="utf-8")
    return str(file)


def test_with_a_worker_s_settings_the_files_hold_what_its_topics_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_rows, "CHUNK", 97)  # what the rule remembers is carried, too
    bundle = make_tiny_bundle(tmp_path, kind="classification")
    log = write_lines(tmp_path / "log.jsonl", readings())
    every = scored(bundle, log, tmp_path / "every.jsonl")
    config = settings(
        tmp_path, bundle,
        '[emit]\nwhat = "on_change"\nequals = "odd"\nk = 2\nn = 3\nalert_topic = "alerts"\n',
    )  # fmt: skip
    out, alerts = tmp_path / "out.jsonl", tmp_path / "alerts.jsonl"
    flags = ["--config", config, "--out", str(out)]
    assert main(["score", str(log), *flags, "--alerts", str(alerts)]) == 0
    said = capsys.readouterr().err
    changed, often = [], []
    labels: dict[str, list[str]] = {}
    for prediction in every:
        before = labels.setdefault(prediction["key"], [])
        label = prediction["output"]["label"]
        if before[-1:] != [label]:
            changed.append(prediction)
        before.append(label)
        if before[-3:].count("odd") >= 2:
            often.append(prediction)
    assert 0 < len(changed) < len(every)
    assert read(out) == changed
    assert read(alerts) == often
    assert f"{len(changed):,} predictions of" in said
    assert f"[emit] of {config}: a prediction is emitted when label changes" in said
    assert f"{len(often):,} alerts to {alerts}\n" in said
    assert main(["score", str(log), *flags]) == 0
    assert f"{len(often):,} alerts left out; --alerts FILE keeps them\n" in capsys.readouterr().err


def test_a_setting_may_be_overridden_and_the_bundle_be_another_one(
    tmp_path: Path, bundle: Bundle
) -> None:
    other = make_tiny_bundle(tmp_path, seed=1)
    config = settings(tmp_path, other, "")
    log = write_lines(tmp_path / "log.jsonl", readings())
    every = scored(bundle, log, tmp_path / "every.jsonl")
    flags = ["--config", config, "--set", "emit.what=when", "--set", "emit.above=0.1"]
    got = scored(bundle, log, tmp_path / "out.jsonl", *flags)
    assert got == [p for p in every if p["output"]["value"] > 0.1]
    assert 0 < len(got) < len(every)


def test_the_order_is_told_of_every_event_though_not_all_are_written(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = readings()
    rows[100:140] = reversed(rows[100:140])
    log = write_lines(tmp_path / "log.jsonl", rows)
    scored(bundle, log, tmp_path / "out.jsonl")
    warning = capsys.readouterr().err.splitlines()[1]
    assert "events are earlier than one of their key before them" in warning
    config = settings(tmp_path, bundle, '[emit]\nwhat = "when"\nabove = 1e9\n')
    assert scored(bundle, log, tmp_path / "out.jsonl", "--config", config) == []
    assert warning in capsys.readouterr().err.splitlines()


def test_members_of_the_event_are_repeated_as_their_text(tmp_path: Path, bundle: Bundle) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"key":"k","time":1,"a":1.10,"b":2,"site":{"x": 1e9}}\n{"key":"k","time":2,"a":1,"b":2}\n'
    )
    config = settings(tmp_path, bundle, 'passthrough = ["a", "site.x"]\n')
    out = str(tmp_path / "out.jsonl")
    assert main(["score", str(log), "--config", config, "--out", out]) == 0
    texts = ['{"a":1.10,"site.x":1e9}', '{"a":1,"site.x":null}']
    lines = Path(out).read_text(encoding="utf-8").splitlines()
    assert all(f'"event":{t}}}' in line for t, line in zip(texts, lines, strict=True))
    out = str(tmp_path / "out.parquet")
    assert main(["score", str(log), "--config", config, "--out", out]) == 0
    assert parquet.read_table(out)["event"].to_pylist() == texts


def test_the_key_field_of_the_settings_is_the_key(tmp_path: Path, bundle: Bundle) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"unit":7,"time":1,"a":1,"b":2}\n')
    config = settings(tmp_path, bundle, "")
    flags = ["--config", config, "--set", "kafka.key_field=unit"]
    assert scored(bundle, log, tmp_path / "out.jsonl", *flags)[0]["key"] == "7"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "expected BUNDLE, or --config worker.toml that names it, got neither"),
        (["--set", "emit.what=when"], "--set: expected --config worker.toml too"),
        (["--config", "worker.toml", "--alerts", "a.jsonl"],
         "--alerts: expected --config worker.toml with emit.alert_topic"),
        (["--config", "alerts.toml", "--alerts", "-"], "expected other files than the log"),
        (["--config", "alerts.toml", "--alerts", "a.csv"], "--alerts a.csv: expected .jsonl"),
        (["--config", "worker.toml", "--set", "emit.what=on_change", "--set", "emit.field=none"],
         "emit.field: expected"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    log = write_lines(tmp_path / "log.jsonl", readings()[:20])
    alerts = '[emit]\nabove = 0.0\nalert_topic = "alerts"\n'
    Path(settings(tmp_path, bundle, alerts)).rename("alerts.toml")
    settings(tmp_path, bundle, "")
    assert main(["score", str(log), "--out", "-", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


# -- a log in local time ---------------------------------------------------------------------------


def test_of_an_hour_that_clocks_show_twice_each_key_s_second_pass_comes_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_tiny_bundle(tmp_path)
    berlin = EventSpec("key", "time", "iso", time_zone="Europe/Berlin")
    manifest = replace(made.manifest, events=berlin)
    graph = (made.path / "step.onnx").read_bytes()
    bundle = contract.load(contract.save(tmp_path, manifest, graph, made.golden))
    night = [f"2025-10-26T{h:02d}:{m}:00" for h in (1, 2, 2, 3) for m in (10, 30, 59)]
    rows = [{"key": k, "time": t, "a": n, "b": 0} for n, t in enumerate(night) for k in ("x", "y")]
    late = {"key": "y", "time": "2025-10-26T00:10:00", "a": 99, "b": 0}
    log = write_lines(tmp_path / "log.jsonl", [*rows, {"key": "x", "a": 1, "b": 0}, late])
    got = scored(bundle, log, tmp_path / "out.jsonl", "--sort")
    place = {key: [p["about"] for p in got if p["key"] == key] for key in ("x", "y")}
    assert place["x"] == [f"log.jsonl:0:{number}" for number in range(1, 25, 2)]
    assert place["y"] == [f"log.jsonl:0:{number}" for number in (26, *range(2, 25, 2))]
    assert (
        "4 events are earlier than one of their key before them (first: row 13): the time zone has "
        "their hour twice, and the second pass comes behind the first\n"
    ) in capsys.readouterr().err
