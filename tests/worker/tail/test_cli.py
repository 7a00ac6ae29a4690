"""keyfold-tail: the view at 80 columns, lines for people, JSON for pipes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mock_kafka import MockKafka
from rich.cells import cell_len
from rich.console import Console

from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.tail import cli as command
from keyfold.worker.tail.lag import group_lag
from keyfold.worker.tail.view import MAX_KEYS, Around, View, read_prediction, sparkline


def prediction(**members: Any) -> bytes:
    """Return a prediction's payload with some members changed."""
    plain = {
        "id": "in:0:7:0", "about": "in:0:7", "key": "k1", "time": 1_700_000_000_123,
        "output": {"value": 0.25}, "steps": 3, "cold": False, "bundle": "0" * 16,
    }  # fmt: skip
    return json.dumps({**plain, **members}).encode()


ODD = {"label": "odd", "probabilities": [0.2, 0.75, 0.05]}


# -- one prediction --------------------------------------------------------------------------------


def test_a_prediction_is_one_readable_line() -> None:
    shown = read_prediction(prediction())
    assert shown is not None
    assert shown.line() == "2023-11-14T22:13:20.123Z  k1  value 0.25  step 3"


def test_a_classification_shows_its_label_and_probability() -> None:
    shown = read_prediction(prediction(output=ODD, cold=True, steps=1))
    assert shown is not None
    assert shown.line().endswith("  k1  odd 75%  step 1  cold")
    assert (shown.signal, shown.bounded) == (0.75, True)


TOP = [{"label": "a", "probability": 0.625}, {"label": "b", "probability": 0.25}]


def test_the_largest_probabilities_and_a_text_s_score_are_shown() -> None:
    shown = read_prediction(prediction(output={"label": "a", "top": TOP}))
    assert shown is not None
    assert (shown.output, shown.signal, shown.bounded) == ("a 62%  b 25%", 0.625, True)
    anomaly = {"score": 2.3456, "worst": 7.1, "flag": True}
    shown = read_prediction(prediction(output={"label": "a", "top": TOP, "anomaly": anomaly}))
    assert shown is not None
    assert (shown.output, shown.signal) == ("ANOMALY 2.35  a 62%  b 25%", 2.3456)
    nothing = {"score": None, "worst": None, "flag": False}
    shown = read_prediction(prediction(output={**ODD, "anomaly": nothing}))
    assert shown is not None
    assert (shown.output, shown.bounded) == ("no score  odd 75%", False)


@pytest.mark.parametrize(
    ("output", "text", "signal"),
    [
        (
            {"forecast": {"temp": {"1": 20.125, "5": 3}, "rpm": {"1": 7}},
             "anomaly": {"score": 0.8312, "field": "temp", "flag": False}},
            "score 0.831 (temp)  temp+1 20.125  rpm+1 7", 0.8312,
        ),
        (
            {"forecast": {"temp": {"1": {"0.1": 1, "0.5": 2, "0.9": 3}}},
             "anomaly": {"score": 4, "field": "temp", "flag": True}},
            "ANOMALY 4 (temp)  temp+1 2", 4.0,
        ),
        (
            {"forecast": {"temp": {"1": 2}},
             "anomaly": {"score": None, "field": None, "flag": False}},
            "no score  temp+1 2", 0.0,
        ),
        ({"forecast": {"temp": {"2": 2}}}, "temp+2 2", 2.0),
    ],
)  # fmt: skip
def test_a_forecast_shows_its_score_and_the_next_values(
    output: dict[str, Any], text: str, signal: float
) -> None:
    shown = read_prediction(prediction(output=output))
    assert shown is not None
    assert (shown.output, shown.signal, shown.bounded) == (text, signal, False)


def test_a_binary_key_is_shown_as_base64() -> None:
    members = json.loads(prediction(key_b64="/wA="))
    del members["key"]
    shown = read_prediction(json.dumps(members).encode())
    assert shown is not None
    assert shown.key == "/wA="


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b"7", b"{}", prediction(output={}), prediction(time=1e300)]
)
def test_what_is_no_prediction_is_told_apart(value: bytes | None) -> None:
    assert read_prediction(value) is None


LONG = {
    "forecast": {name: {"1": 20.125, "5": 3} for name in (
        "bearing_temperature_front", "bearing_temperature_rear", "rpm", "load",
    )},
    "anomaly": {"score": 0.8312, "field": "bearing_temperature_front", "flag": True},
}  # fmt: skip


def test_a_line_fits_80_columns_and_shows_score_field_and_forecast() -> None:
    for key in ("k1", "a-key-with-a-very-long-name-that-goes-on"):
        for steps, cold in ((3, False), (123456, True)):
            value = prediction(output=LONG, key=key, steps=steps, cold=cold)
            shown = read_prediction(value)
            assert shown is not None
            line = shown.line()
            assert len(line) <= 80
            assert re.search(r"ANOMALY 0.831 \(b\w*…\)  b\w*…\+1 20\.125", line) or cold
            assert "ANOMALY 0.831 (b" in line
    shown = read_prediction(prediction(output=LONG))
    assert shown is not None
    assert "bearing_temperature_front)  bearing_temperature_front+1 20.125" in shown.output


def test_what_fits_is_not_cut() -> None:
    shown = read_prediction(prediction(output={"temp": 1.5, "rpm": 2}, key="k" * 33))
    assert shown is not None
    assert shown.line() == f"2023-11-14T22:13:20.123Z  {'k' * 28}…  temp 1.5  rpm 2  step 3"
    assert shown.fit(15) == "temp 1.5  rpm 2"
    assert shown.fit(14) == "te… 1.5  rpm 2"
    assert shown.fit(9) == "te… 1.5 …"


# -- the view --------------------------------------------------------------------------------------


def picture(
    view: View, now_s: float = 1.0, height: int = 24, around: Around | None = None
) -> list[str]:
    """Return the view's lines at 80 columns, without colours."""
    console = Console(file=io.StringIO(), width=80, height=height, color_system=None)
    console.print(view.render(now_s, 80, height, around or Around()))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_view_fits_80_columns_and_the_terminals_height() -> None:
    view = View("a-topic-with-a-long-name")
    for i in range(200):
        view.add(prediction(key=f"a-key-with-a-long-name-{i}", output={"a long name": i, "b": -i}))
    lines = picture(view, height=24, around=Around(123456, 7890))
    assert len(lines) <= 24
    assert max(cell_len(line) for line in lines) <= 80


def test_a_row_shows_score_field_and_forecast_in_80_columns() -> None:
    view = View("out")
    for i in range(100):
        view.add(prediction(key="pump-01", output=LONG, steps=i))
        view.add(prediction(key=f"a-key-with-a-long-name-{i % 3}", output=LONG, steps=i))
    lines = picture(view)
    assert max(map(cell_len, lines)) <= 80
    row = next(line for line in lines if line.startswith("pump-01"))
    assert re.search(r"ANOMALY 0.831 \(b\w*…\)  b\w*…\+1 20\.125", row)
    assert any(line.startswith("a-key-with-a-lo… ") for line in lines)


def test_the_most_recently_seen_keys_come_first_with_their_newest_prediction() -> None:
    view = View("out")
    for key, value in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("a", 4.0)):
        view.add(prediction(key=key, output={"value": value}))
    rows = picture(view)[2:]
    assert [row.split()[:3] for row in rows] == [
        ["a", "value", "4"], ["c", "value", "3"], ["b", "value", "2"]
    ]  # fmt: skip


def test_the_head_names_rate_lag_and_rejects() -> None:
    view = View("out")
    view.arrived(0, 0.0)
    for _ in range(50):
        view.add(prediction())
    view.add(b"{")
    view.arrived(51, 9.0)
    head = picture(view, 10.0, around=Around(lag=1234, rejects=2))[0]
    assert head == "out · 10/s · 50 predictions · 1 keys · lag 1,234 · 2 rejects · 1 unreadable"


def test_the_rate_forgets() -> None:
    view = View("out")
    view.arrived(100, 0.0)
    assert view.rate(1.0) == 100
    assert view.rate(4.0) == 25
    view.arrived(0, 100.0)
    assert view.rate(100.0) == 0


def test_markup_in_a_key_is_shown_as_it_is() -> None:
    view = View("out")
    view.add(prediction(key="[red]k[/red]"))
    assert picture(view)[2].startswith("[red]k[/red]")


def test_the_longest_unseen_keys_are_forgotten() -> None:
    view = View("out")
    for i in range(MAX_KEYS + 10):
        view.add(prediction(key=f"k{i}"))
    assert f"{MAX_KEYS:,} keys" in picture(view)[0]


def test_an_empty_view_is_drawn() -> None:
    assert picture(View("out"), height=3)[0].startswith("out · 0/s")


def test_a_sparkline_spans_its_own_range_and_a_probability_all_of_it() -> None:
    assert sparkline([1.0, 2.0, 3.0], bounded=False) == "▁▅█"
    assert sparkline([0.0, 0.5, 1.0, 0.9], bounded=True) == "▁▅█▇"
    assert sparkline([2.0, 2.0], bounded=False) == "▄▄"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    with MockKafka() as mock:
        payloads = [(b"k1", prediction(steps=i)) for i in range(1, 6)]
        mock.write("out", 0, payloads[:3])
        mock.write("out", 2, [*payloads[3:], (b"k", b"{")])
        yield mock


def test_json_prints_each_prediction_as_it_is_and_stops_after_n(
    kafka: MockKafka, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    flags = ["--brokers", kafka.brokers, "--topic", "out", "--json", "--from-start"]
    assert command.main([*flags, "-n", "6"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert sorted(lines) == sorted([*(prediction(steps=i) for i in range(1, 6)), b"{"])


def test_without_a_terminal_each_prediction_is_a_line(
    kafka: MockKafka, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--brokers", kafka.brokers, "--topic", "out", "--from-start", "-n", "6"]
    assert command.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2023-11-14T22:13:20.123Z  k1  value 0.25  step 1" in lines
    assert "out:2:2: no prediction" in lines


def test_a_pipe_that_is_closed_ends_it_quietly(kafka: MockKafka) -> None:
    code = "import sys; from keyfold.worker.tail.cli import main; sys.exit(main())"
    flags = ["--brokers", kafka.brokers, "--topic", "out", "--json", "--from-start"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_missing_topic_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--topic", "out"]) == 2
    assert capsys.readouterr().err == (
        "keyfold-tail: expected worker.toml, or --brokers and --topic\n"
    )


def test_the_lag_of_a_group_without_offsets_is_the_whole_topic(kafka: MockKafka) -> None:
    with KafkaLog(kafka.brokers) as log:
        assert group_lag(log, kafka.brokers, "out", "nobody") == 6
