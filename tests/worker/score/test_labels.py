"""keyfold-verify labels: the error of predictions whose labels came later, day by day."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_worker import Serving, make_events
from text_bundle import make_text_bundle
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.outputs import OutputSpec
from keyfold.worker.errors import Reject
from keyfold.worker.score.labels import is_first
from keyfold.worker.score.live_error import History, LiveError
from keyfold.worker.score.out import writing
from keyfold.worker.verify.cli import main

DAY = 86_400_000
BEGIN = 19_700 * DAY  # 2023-12-09
COUNT = 300


@pytest.fixture(scope="module", params=[0, 2])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return what `serving` serves: events that are answered at once, or two events of a key late.

    Late answers are about other events than those that caused them, in no rising order.
    """
    outputs = OutputSpec("regression", ("value",), delay=request.param)
    return make_tiny_bundle(tmp_path_factory.mktemp("served"), outputs=outputs)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Events of 7 keys over three days."""
    draw = np.random.default_rng(0)
    file = tmp_path / "log.jsonl"
    with file.open("w") as lines:
        for number in range(COUNT):
            a, b = (float(v) for v in draw.normal(size=2))
            time = BEGIN + number * (3 * DAY // COUNT)
            lines.write(json.dumps({"key": f"k{number % 7}", "time": time, "a": a, "b": b}) + "\n")
    return file


def scored(tmp_path: Path, log: Path, name: str = "out.jsonl", **options: Any) -> Path:
    bundle = make_tiny_bundle(tmp_path / "bundles", **options)
    assert main(["score", str(log), str(bundle.path), "--out", str(tmp_path / name)]) == 0
    return tmp_path / name


def predictions(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def labels_for(tmp_path: Path, rows: list[tuple[str, int, Any]]) -> Path:
    file = tmp_path / "labels.csv"
    file.write_text("machine,at,truth\n" + "".join(f"{k},{t},{v}\n" for k, t, v in rows))
    return file


FIELDS = ["--key", "machine", "--time", "at", "--field", "truth"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_the_error_of_a_regression_is_told_by_day_and_in_all(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    pytest.importorskip("pyarrow")
    got = predictions(scored(tmp_path, log))
    # Labels come 10 s late, off by 1 on the first day and by 3 on the second; then there are none.
    rows = [
        (p["key"], p["time"] + 10_000, p["output"]["value"] + (1 if p["time"] < BEGIN + DAY else 3))
        for p in got
        if p["time"] < BEGIN + 2 * DAY
    ]
    labels = labels_for(tmp_path, rows)
    out = scored(tmp_path, log, name)
    capsys.readouterr()
    report = tmp_path / "report.json"
    given = ["labels", str(out), str(labels), *FIELDS, "--within-s", "60"]
    assert main([*given, "--json", str(report)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["day", "(UTC)", "predictions", "labelled", "RMSE", "MAE"],
        ["2023-12-09", "100", "100", "1", "1"],
        ["2023-12-10", "100", "100", "3", "3"],
        ["2023-12-11", "100", "0", "-", "-"],
        ["all", "300", "200", "2.236", "2"],
    ]
    every = json.loads(report.read_text())["all"]
    assert every["rmse"] == pytest.approx(math.sqrt(5), abs=1e-5)


def test_classes_are_counted_that_were_right(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scored(tmp_path, log, kind="classification")
    rows = [
        (p["key"], p["time"], p["output"]["label"] if number % 4 else "none of these")
        for number, p in enumerate(predictions(out))
    ]
    capsys.readouterr()
    assert main(["labels", str(out), str(labels_for(tmp_path, rows)), *FIELDS]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "300", "300", "0.75"]


@pytest.mark.parametrize("name", ["forecasts.jsonl", "forecasts.parquet"])
def test_a_forecast_is_compared_by_its_path_in_every_kind_of_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        {"id": f"f:0:row:{n}", "about": f"f:0:{n}", "key": "k", "time": BEGIN + n, "cold": n == 0,
         "output": {"forecast": {"force": {"1": 2.5, "5": 9.0}},
                    "anomaly": {"score": None if n == 0 else 1.5, "flag": False}}}
        for n in range(4)
    ]  # fmt: skip
    out = tmp_path / name
    with writing(str(out), ()) as writer:
        writer.write([json.dumps(row).encode() for row in rows])
    labels = str(labels_for(tmp_path, [("k", BEGIN + n, 2.0) for n in range(4)]))
    given = ["labels", str(out), labels, *FIELDS]
    assert main([*given, "--output", "forecast.force.1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "4", "4", "0.5", "0.5"]
    # The first event of a key has no score: it is no error of the file.
    assert main([*given, "--output", "anomaly.score"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "4", "3", "0.5", "0.5"]
    assert main(given) == 2
    assert (
        "expected one output, or --output NAME, got forecast.force.1, forecast.force.5, "
        "anomaly.score, anomaly.flag\n"
    ) in capsys.readouterr().err


def test_labels_that_belong_to_no_key_or_to_no_event_in_time_are_counted_and_named(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scored(tmp_path, log)
    rows = [(p["key"], p["time"], 1) for p in predictions(out)]
    rows += [(f"K{n % 4}", BEGIN, 1) for n in range(5)] + [("k1", BEGIN + 30 * DAY, 1)] * 2
    capsys.readouterr()
    assert main(["labels", str(out), str(labels_for(tmp_path, rows)), *FIELDS]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "keyfold-verify labels: 300 of 307 labels joined events",
        "keyfold-verify labels: 5 of 307 labels belong to no key: K0, K1, K2, …",
        "keyfold-verify labels: 2 of 307 labels belong to no event within 0 s before",
    ]


def test_a_label_is_the_first_one_at_or_behind_the_event() -> None:
    history = History()
    for time, value in ((30, 3.0), (10, 1.0), (20, 2.0), (20, 9.0)):
        history.add(time, value)
    history.sort()
    assert [history.at(t, 5) for t in (5, 10, 11, 15, 20, 26, 31)] == [
        (10, 1.0), (10, 1.0), None, (20, 2.0), (20, 2.0), (30, 3.0), None
    ]  # fmt: skip


def labelled(predictions: list[tuple[str, int, bool]], labels: list[tuple[str, int]]) -> list[int]:
    """Return the times of the predictions (key, time, cold) that got one of the labels (key, time).

    Each is on a day of its own.
    """
    histories: dict[bytes, History] = {}
    for key, day in labels:
        histories.setdefault(key.encode(), History()).add(day * DAY, 1.0)
    live = LiveError(histories, 10 * DAY)
    for key, day, cold in predictions:
        live.add({"key": key, "time": day * DAY, "cold": cold, "output": {"value": 3.0}})
    live.finish()
    assert live.total().absolute == 2 * live.total().labelled
    return sorted(day for day, errors in live.days.items() if errors.labelled)


def test_a_label_belongs_to_no_event_of_a_life_that_ended_before_it() -> None:
    one_life = [("k", day, day == 0) for day in range(9)]
    assert labelled(one_life, [("k", 4)]) == [0, 1, 2, 3, 4]
    two_lives = [("k", day, day in (0, 3)) for day in range(9)]
    assert labelled(two_lives, [("k", 4)]) == [3, 4]
    # One at the first event of a life is of that life, as in training; one before it is not.
    assert labelled(two_lives, [("k", 3)]) == [3]
    assert labelled(two_lives, [("k", 2)]) == [0, 1, 2]
    assert labelled(two_lives, [("k", 20)]) == []
    assert labelled([*two_lives, ("k", 19, True)], [("k", 18)]) == [8]
    others = [("k", 0, True), ("j", 1, True), ("k", 2, False)]
    assert labelled(others, [("k", 3)]) == [0, 2]


def test_events_out_of_order_have_their_labels_too() -> None:
    late = [("k", 5, True), ("k", 7, False), ("k", 6, False), ("k", 8, True), ("k", 9, False)]
    assert labelled(late, [("k", 7), ("k", 10)]) == [5, 6, 7, 8, 9]


VALUE = OutputSpec("regression", ("value",))


def errors_of(
    outputs: OutputSpec | None, made: list[dict[str, Any]], labels: list[tuple[int, float]]
) -> tuple[int, int, float]:
    """Return the count of predictions of one key, of those with a label, and their error."""
    history = History()
    for time, value in labels:
        history.add(time, value)
    live = LiveError({b"k": history}, 10_000, outputs=outputs)
    for one in made:
        live.add({"key": "k", "cold": False, **one})
    live.finish()
    total = live.total()
    return total.predictions, total.labelled, total.absolute


def session(time: int, value: float, **more: Any) -> dict[str, Any]:
    return {"time": time, "output": {"value": value}, "last": True, "steps": 3, **more}


def test_a_label_of_a_session_says_nothing_of_the_one_before_it() -> None:
    outputs = replace(VALUE, answers="session")
    two = [session(2_000, 3.0), session(9_000, 7.0)]
    assert errors_of(outputs, two, [(9_000, 7.0)]) == (2, 1, 0.0)
    # One that came before the next session's end is of the session that had ended.
    assert errors_of(outputs, two, [(4_000, 3.0), (9_500, 7.0)]) == (2, 2, 0.0)
    # A silence and an end that one record shows are two sessions, of which one says "last".
    both = [session(2_000, 3.0, last=None), session(9_000, 7.0)]
    assert errors_of(outputs, both, [(2_000, 3.0), (9_000, 7.0)]) == (2, 2, 0.0)


def test_of_a_text_the_last_prediction_is_compared() -> None:
    outputs = OutputSpec("classification", ("0", "1"), read="every")
    made = [
        {"time": 5, "output": {"label": label}, **({"last": True} if last else {})}
        for label, last in (("1", False), ("1", False), ("0", True))
    ]
    history = History()
    history.add(5, "0")
    live = LiveError({b"k": history}, 0, outputs=outputs)
    for one in made:
        live.add({"key": "k", "cold": True, **one})
    live.finish()
    assert (live.total().predictions, live.total().right) == (1, 1)


def test_predictions_that_only_the_bundle_explains_need_it() -> None:
    with pytest.raises(Reject) as refused:
        errors_of(None, [session(2_000, 3.0)], [(2_000, 3.0)])
    assert str(refused.value) == (
        'expected --bundle with predictions that hold "last", got none: only the bundle says '
        "whether they answer sessions or every symbol of a text"
    )


def test_a_prediction_that_was_emitted_twice_is_told_by_its_id() -> None:
    def firsts(ids: list[str]) -> list[int]:
        seen: dict[str, tuple[int, int]] = {}
        values = [json.dumps({"id": one, "about": "in:0:7"}).encode() for one in ids]
        return [place for place, value in enumerate(values) if is_first(value, seen)]

    # All are about one event: what a prediction is about neither rises nor differs.
    assert firsts(["in:0:8:0", "in:0:8:1", "in:0:9:0"]) == [0, 1, 2]
    twice = ["in:0:8:0", "in:0:8:1", "in:0:9:0", "in:0:8:1", "in:0:9:0", "in:0:10:0"]
    assert firsts(twice) == [0, 1, 2, 5]
    assert firsts(["old:0:8:0", "in:0:3:0"]) == [0, 1]
    assert not any(is_first(value, {}) for value in (b"", b"[]", b"{}", b'{"id":"a:b"}', b"{"))


@pytest.mark.parametrize("kind", ["session", "late", "every"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_answers_of_every_kind_are_compared_with_the_labels_of_their_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        {"key": f"k{n % 3}", "time": BEGIN + 1000 * n, "a": n / 9, "b": 1.0, "line": "ab",
         "bye": n % 12 > 8} for n in range(60)
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind == "every":
        outputs = OutputSpec("classification", ("calm", "odd", "wild"), read="every")
        bundle = make_text_bundle(tmp_path / "bundles", outputs=outputs)
    else:
        late = replace(VALUE, answers="session") if kind == "session" else replace(VALUE, delay=2)
        bundle = make_tiny_bundle(tmp_path / "bundles", outputs=late, end_field="bye")
    for file in ("all.jsonl", name):
        assert main(["score", str(log), str(bundle.path), "--out", str(tmp_path / file)]) == 0
    made = predictions(tmp_path / "all.jsonl")
    if kind == "every":
        made = [one for one in made if one.get("last")]
    truth = [
        (p["key"], p["time"], p["output"].get("value", p["output"].get("label"))) for p in made
    ]
    capsys.readouterr()
    given = ["labels", str(tmp_path / name), str(labels_for(tmp_path, truth)), *FIELDS]
    assert main([*given, "--bundle", str(bundle.path), "--within-s", "30"]) == 0
    shown = capsys.readouterr()
    count, result = {"session": (15, 0), "late": (30, 0), "every": (60, 1)}[kind]
    _, *counts, got = shown.out.splitlines()[-1].split()[:4]
    assert counts == [str(count)] * 2
    assert float(got) == pytest.approx(result, abs=1e-6)
    said = {
        "session": "a session's label comes before the last event of its key's next session",
        "every": "of each event the last symbol's prediction is compared",
    }
    assert {name for name, text in said.items() if text in shown.err} == {kind} - {"late"}


def test_key_and_time_are_where_the_bundle_has_them(tmp_path: Path, log: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundles")
    out = scored(tmp_path, log)
    labels = tmp_path / "labels.jsonl"
    truth = [{"key": p["key"], "time": p["time"], "late": {"rul": 1}} for p in predictions(out)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in truth))
    given = ["labels", str(out), str(labels), "--field", "late.rul"]
    assert main([*given, "--bundle", str(bundle.path)]) == 0


@pytest.fixture
def wrong(tmp_path: Path, log: Path) -> Path:
    scored(tmp_path, log)
    labels_for(tmp_path, [("k1", BEGIN + DAY, "much"), ("k2", BEGIN, 2)])
    (tmp_path / "other.jsonl").write_text('{"key": "k1"}\n')
    (tmp_path / "list.jsonl").write_text("[]\n")
    (tmp_path / "late.csv").write_text(f"machine,at,truth\nk1,{BEGIN + 10 * DAY},5\n")
    (tmp_path / "untimed.csv").write_text("machine,at,truth\nk1,,5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.jsonl", "late.csv", *FIELDS], "expected labels of the predictions' keys within 0 s"),
        (["out.jsonl", "labels.csv", *FIELDS, "--within-s", "9e5"],
         "expected a number as the label of a regression, got text"),
        (["out.jsonl", "labels.csv", *FIELDS[:-1], "rul"],
         "labels.csv: expected labels in the field 'rul' (--field), got none"),
        (["out.jsonl", "untimed.csv", *FIELDS], "untimed.csv, row 1: field 'at': expected"),
        (["out.jsonl", "labels.csv", "--field", "truth"], "--key: expected the field of"),
        (["out.jsonl", "labels.csv", *FIELDS, "--output", "rul"],
         "out.jsonl, line 1: expected output 'rul', got value"),
        (["other.jsonl", "labels.csv", *FIELDS], "other.jsonl, line 1: expected a prediction"),
        (["list.jsonl", "labels.csv", *FIELDS], "list.jsonl, line 1: expected a prediction"),
        (["none.jsonl", "labels.csv", *FIELDS], "none.jsonl: expected an event log"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_in_one_line(
    wrong: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(wrong)
    capsys.readouterr()
    assert main(["labels", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_the_output_topic_of_a_worker_is_compared(
    serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.send(make_events(200, 10))
    with serving.running() as worker:
        serving.wait_saved([worker])
    # What a worker that ended early has emitted before stands there twice, and counts once.
    rows = [json.loads(m.value()) for m in serving.records(serving.output)]
    number = int(rows[0]["id"].split(":")[1])
    serving.send_to(serving.output, [(b"k", json.dumps(rows[0]).encode())], number)
    labels = labels_for(tmp_path, [(p["key"], p["time"], p["output"]["value"]) for p in rows])
    settings = tmp_path / "worker.toml"
    settings.write_text(
        f"""
        [worker]
        bundle = "{serving.bundle.path}"
        [kafka]
        brokers = "{serving.kafka.address}"
        input = "{serving.input}"
        output = "{serving.output}"
        [redis]
        url = "{serving.valkey.url}"
        """
    )
    assert main(["labels", str(settings), str(labels), *FIELDS]) == 0
    count = str(200 - 10 * serving.bundle.manifest.outputs.delay)  # of each key's last ones none
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", count, count, "0", "0"]
