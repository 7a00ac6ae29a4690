"""keyfold-train init: from logs as they are found to a training.toml that says why."""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from keyfold.training.cli import main
from keyfold.training.config import read_config
from keyfold.training.data import DataError, read_log
from keyfold.training.learned import learn
from keyfold.training.split import split

START = datetime(2024, 3, 1)


def init(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run init, check that what it wrote can be read in, and return the settings."""
    out = folder / "training.toml"
    assert main(["init", *arguments, "--out", str(out)]) == 0
    config = read_config(out)
    log = read_log(config)
    learn(log, split(log.sequences, config.split).train)
    return tomllib.loads(out.read_text(encoding="utf-8"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    # A refusal writes nothing.
    assert main(["init", *arguments, "--out", "/tmp/keyfold-never-written.toml"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_wrong_zone_or_folder_is_told_in_one_line_before_any_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(tmp_path / "not there.csv")  # whoever reads first complains of it
    assert refusal(capsys, log, "--time-zone", "Europa/Berlin") == (
        "keyfold-train: --time-zone: expected a zone such as 'Europe/Berlin' that this machine "
        "knows (else: pip install tzdata), got 'Europa/Berlin'\n"
    )
    out = tmp_path / "nix" / "y.toml"
    assert main(["init", log, "--out", str(out)]) == 1
    assert capsys.readouterr().err == (
        f"keyfold-train: --out {out}: expected a folder that exists, got {out.parent}\n"
    )


def write(
    file: Path, rows: Sequence[Sequence[object]], separator: str = ",", encoding: str = "utf-8"
) -> str:
    text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    file.write_bytes(text.encode(encoding))
    return str(file)


def wave(i: int, key: int = 0) -> float:
    return 20 + key + 5 * float(np.sin(i / 9)) + 0.1 * ((7 * i) % 11)


def test_the_terminal_names_the_assumed_zone_and_cells_that_are_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[list[object]] = [["time", "machine", "Druck"]]
    for i in range(200):
        moment = (START + timedelta(minutes=i)).strftime("%d.%m.%Y %H:%M")
        rows.append([moment, "m1", "12 bar" if i in (7, 9) else round(wave(i), 2)])
    log = write(tmp_path / "log.csv", rows)
    init(tmp_path, log)
    said = " ".join(capsys.readouterr().out.split())
    assert "it names no zone: assumed to be UTC; another one: --time-zone Europe/Berlin" in said
    assert (
        "2 cells of column Druck are text with a unit or other words, such as '12 bar', and count "
        "as missing"
    ) in said
    init(tmp_path, log, "--time-zone", "Europe/Berlin", "--force")
    said = " ".join(capsys.readouterr().out.split())
    assert "it names no zone: taken as Europe/Berlin" in said
    assert "assumed" not in said


@pytest.mark.parametrize("as_number", [False, True])
def test_a_machines_id_is_the_key_rather_than_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_number: bool
) -> None:
    log = tmp_path / "log.jsonl"
    rows = []
    for i in range(700):
        machine = i % 7
        about = {"line": f"L{machine % 2}", "id": machine if as_number else f"M{machine}"}
        time = (START + timedelta(seconds=i)).isoformat() + "Z"
        rows.append({"ts": time, "meta": {"machine": about}, "a": wave(i, machine)})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert init(tmp_path, str(log))["data"]["key_field"] == "meta.machine.id"
    said = " ".join(capsys.readouterr().out.split())
    assert "key meta.machine.id (7 keys)" in said
    assert "or meta.machine.line (2 keys); to take it: --key meta.machine.line" in said


def test_a_spreadsheet_from_germany_is_read_as_it_is(tmp_path: Path) -> None:
    rows: list[list[object]] = [["Zeit", "Maschine", "Temperatur °C", "Druck", "Zustand", "Ort"]]
    for i in range(200):
        for key in range(2):
            moment = START + timedelta(minutes=i)
            temperature = ["", "NA", "---"][i % 3] if i % 40 == 7 else f"{wave(i, key):.2f}"
            rows.append([
                moment.strftime("%d.%m.%Y %H:%M"), f"M{key}", temperature.replace(".", ","),
                f"{1 + i % 5}", "läuft" if i % 7 else "steht", "Halle 3",
            ])  # fmt: skip
    rows[5], rows[9] = rows[9], rows[5]
    file = write(tmp_path / "werte.csv", rows, ";", "latin-1")
    data = init(tmp_path, file)["data"]
    assert (data["csv_separator"], data["csv_decimal"], data["csv_encoding"]) == (
        ";",
        ",",
        "latin-1",
    )
    assert (data["key_field"], data["time_field"]) == ("Maschine", "Zeit")
    assert data["time_unit"] == "%d.%m.%Y %H:%M"
    assert data["features"] == ["Temperatur °C", "Druck", "Zustand"]
    assert data["categories"] == ["Zustand"]
    assert data["missing_last"] == ["Temperatur °C"]
    assert data["null_words"] == ["---"]
    text = (tmp_path / "training.toml").read_text(encoding="utf-8")
    assert "left out: Ort: always the same" in text
    assert "rows stand before an earlier row of their key" in text


@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
)
def test_the_unit_of_a_number_of_time_is_told_by_its_size(
    tmp_path: Path, unit: str, per_second: int
) -> None:
    rows = [["device_id", "ts", "a"]]
    rows += [
        [f"d{i % 2}", str((1_700_000_000 + i) * per_second), f"{wave(i):.3f}"] for i in range(60)
    ]
    data = init(tmp_path, write(tmp_path / "log.csv", rows))["data"]
    assert (data["key_field"], data["time_field"], data["time_unit"]) == ("device_id", "ts", unit)


@pytest.mark.parametrize(
    ("pattern", "unit"),
    [
        ("%Y-%m-%dT%H:%M:%S+02:00", "iso"),
        ("%Y-%m-%d %H:%M:%S", "iso"),
        ("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M:%S %p"),
        ("%d/%m/%y %H:%M:%S", "%d/%m/%y %H:%M:%S"),
    ],
)
def test_the_form_of_a_time_as_text_is_found(tmp_path: Path, pattern: str, unit: str) -> None:
    rows = [["time", "a"]]
    rows += [
        [(START + timedelta(hours=11 * i)).strftime(pattern), f"{wave(i):.3f}"] for i in range(60)
    ]
    data = init(tmp_path, write(tmp_path / "log.csv", rows))["data"]
    assert data["time_unit"] == unit
    assert ("time_zone" in data) == ("+" not in pattern)


def test_a_date_whose_steps_fit_both_readings_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[list[object]] = [["time", "a"]]
    rows += [[f"03/04/2024 {i // 60:02d}:{i % 60:02d}", wave(i)] for i in range(90)]
    file = write(tmp_path / "log.csv", rows)
    error = refusal(capsys, file)
    assert "'03/04/2024 00:00' may be day or month first" in error
    assert error.endswith("--time-format '%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M'\n")
    for unit in ("%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M"):
        told = ("--time", "time", "--time-format", unit, "--force")
        assert init(tmp_path, file, *told)["data"]["time_unit"] == unit


@pytest.mark.parametrize(
    ("pattern", "said"), [("%m/%d/%Y %I:%M %p", "month first"), ("%d/%m/%Y %H:%M", "day first")]
)
def test_a_date_is_read_the_way_that_gives_the_steadier_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str, said: str
) -> None:
    rows: list[list[object]] = [["machine", "time", "a"]]
    for i in range(400):
        moment = (datetime(2026, 4, 3, 8) + timedelta(minutes=15 * i)).strftime(pattern)
        rows += [[f"m{key}", moment, f"{wave(i, key):.3f}"] for key in range(2)]
    assert init(tmp_path, write(tmp_path / "log.csv", rows))["data"]["time_unit"] == pattern
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{said} (steadier steps) every 900 s, regular, 0 gaps" in printed


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("received_at", "measured_at"), "measured_at"),
        (("processing_time", "event_time"), "event_time"),
        (("ingestion_time", "at"), "at"),
        (("begin", "at"), "at"),  # names say nothing: the steadier one
    ],
)
def test_the_time_of_the_measurement_is_preferred_to_that_of_its_arrival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str], chosen: str
) -> None:
    rows: list[list[object]] = [["machine", *names, "a"]]
    for i in range(100):
        late = START + timedelta(minutes=i, seconds=(7 * i * i) % 50)
        moments = (late.isoformat() + "Z", (START + timedelta(minutes=i)).isoformat() + "Z")
        rows += [[f"m{key}", *moments, f"{wave(i, key):.3f}"] for key in range(2)]
    assert init(tmp_path, write(tmp_path / "log.csv", rows))["data"]["time_field"] == chosen
    assert f"{names[0]} is a time too; to take it: --time {names[0]}" in capsys.readouterr().out


def test_nested_members_booleans_and_categories_of_json_are_fields(tmp_path: Path) -> None:
    lines = []
    for i in range(120):
        reading = {"temp": wave(i)} if i % 9 else {}
        event = {
            "meta": {"serial": f"s{i % 3}"}, "at": 1_700_000_000_000 + 1000 * i,
            "readings": reading, "on": i % 4 == 0, "mode": ["auto", "hand"][i // 30 % 2],
            "tags": [1],
        }  # fmt: skip
        lines.append(json.dumps(event))
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join([*lines, "{broken"]), encoding="utf-8")  # within the 1 % allowed
    data = init(tmp_path, str(file))["data"]
    assert data["key_field"] == "meta.serial"
    assert data["features"] == ["readings.temp", "on", "mode"]
    assert (data["booleans"], data["categories"]) == (["on"], ["mode"])
    assert data["missing_last"] == ["readings.temp"]
    assert "max_reject_share" not in data


def test_one_sensor_per_row_is_the_long_format(tmp_path: Path) -> None:
    rows: list[list[object]] = [["asset", "sensor", "value", "time"]]
    for i in range(100):
        for k, sensor in enumerate(("temp", "rpm")):
            rows.append(
                [f"a{i % 2}", sensor, f"{wave(i, 100 * k):.3f}", 1_700_000_000 + 10 * i + k]
            )
    data = init(tmp_path, write(tmp_path / "long.csv", rows))["data"]
    assert (data["long_name"], data["long_value"]) == ("sensor", "value")
    assert data["features"] == ["temp", "rpm"]
    assert (data["key_field"], data["missing"]) == ("asset", "last")


def test_a_file_without_a_key_is_a_key_of_its_own(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"pump{n}.csv",
              [["ts", "a"], *([1_700_000_000 + i, f"{wave(i):.2f}"] for i in range(50))])
        for n in range(2)
    ]  # fmt: skip
    assert init(tmp_path, *files)["data"]["key_field"] == ""
    log = read_log(read_config(tmp_path / "training.toml"))
    assert [sequence.key for sequence in log.sequences] == ["pump0", "pump1"]


def test_a_log_without_a_time_is_held_out_by_order(tmp_path: Path) -> None:
    rows = [["a", "b"], *([f"{wave(i):.3f}", f"{wave(2 * i):.3f}"] for i in range(80))]
    settings = init(tmp_path, write(tmp_path / "log.csv", rows))
    assert "time_field" not in settings["data"]
    assert settings["split"]["by"] == "order"


def test_parquet_with_times_of_its_own_kind_is_read(tmp_path: Path) -> None:
    times = [START + timedelta(seconds=5 * (i // 2)) for i in range(100)]
    table = {
        "asset_id": [i % 2 for i in range(100)],
        "when": times,
        "a": [wave(i) for i in range(100)],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "log.parquet")
    data = init(tmp_path, str(tmp_path / "log.parquet"))["data"]
    assert (data["key_field"], data["time_field"], data["time_unit"]) == ("asset_id", "when", "iso")


def test_irregular_events_and_gaps_are_said_and_used(tmp_path: Path) -> None:
    rows: list[list[object]] = [["time", "a"]]
    moment = 1_700_000_000
    for i in range(200):
        moment += 86_400 if i in (60, 120) else 10 + (i * 7) % 13
        rows.append([moment, f"{wave(i):.3f}"])
    data = init(tmp_path, write(tmp_path / "log.csv", rows))["data"]
    assert data["since_last"] is True
    text = (tmp_path / "training.toml").read_text(encoding="utf-8")
    assert "irregular; 2 gaps, the longest 24 h" in " ".join(text.replace("#", "").split())
    assert "# reset_after_s = " in text


def test_what_looks_like_a_label_is_left_out_until_it_is_named(tmp_path: Path) -> None:
    rows: list[list[object]] = [["time", "a", "rul"]]
    rows += [[1_700_000_000 + i, f"{wave(i):.3f}", 300 - i] for i in range(80)]
    file = write(tmp_path / "log.csv", rows)
    assert init(tmp_path, file)["data"]["features"] == ["a"]
    data = init(tmp_path, file, "--label", "rul", "--force")["data"]
    assert (data["label"], data["kind"]) == ("rul", "regression")


def test_the_same_log_gives_the_same_text(tmp_path: Path) -> None:
    rows: list[list[object]] = [["time", "id", "a"]]
    rows += [[1_700_000_000 + i, i % 4, f"{wave(i):.3f}"] for i in range(80)]
    file = write(tmp_path / "log.csv", rows)
    init(tmp_path, file)
    first = (tmp_path / "training.toml").read_text(encoding="utf-8")
    init(tmp_path, file, "--force")
    assert (tmp_path / "training.toml").read_text(encoding="utf-8") == first


def test_what_init_prints_and_writes_fits_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[object] = [f"a long name of a sensor {n}" for n in range(30)]
    rows: list[list[object]] = [["time", *names, "empty"]]
    rows += [[1_700_000_000 + i, *(f"{wave(i, n):.3f}" for n in range(30)), ""] for i in range(60)]
    (tmp_path / "d").mkdir()
    init(tmp_path / "d", write(tmp_path / "l.csv", rows))
    printed = capsys.readouterr().out
    shown = [line for line in printed.splitlines() if str(tmp_path) not in line]
    written = (tmp_path / "d" / "training.toml").read_text(encoding="utf-8").splitlines()
    long = [line for line in (*shown, *written) if len(line) > 80 and str(tmp_path) not in line]
    assert not long
    assert "next: keyfold-train " in printed


def test_an_existing_file_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "training.toml"
    out.write_text("mine", encoding="utf-8")
    assert main(["init", "log.csv", "--out", str(out)]) == 1
    assert "exists already; --force writes over it" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"


def test_what_cannot_be_told_is_asked_for_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [f"2024-01-01T{i:02d}:00:00" for i in range(24)]
    plain = [
        ["time", "x"],
        *([t, f"{wave(i * 4 + k):.3f}"] for i, t in enumerate(times) for k in range(4)),
    ]
    error = refusal(capsys, write(tmp_path / "a.csv", plain))
    assert "75% of the rows share their time with another row" in error
    assert "--key COLUMN names it" in error
    halves = [["site", "line", "time", "x"]]
    halves += [[s, n, t, f"{wave(i):.3f}"] for i, t in enumerate(times) for s in "AB" for n in "12"]
    error = refusal(capsys, write(tmp_path / "b.csv", halves))
    assert "expected the key in one column, got 'site' and 'line'" in error
    apart = [
        ["Date", "Time", "x"],
        *(
            [f"{d + 1:02d}/01/2024", f"{h:02d}:00:00", f"{wave(h):.2f}"]
            for d in range(20)
            for h in range(24)
        ),
    ]
    error = refusal(capsys, write(tmp_path / "c.csv", apart))
    assert "expected the time in one column, got 'Date' and 'Time'" in error
    error = refusal(capsys, write(tmp_path / "d.csv", plain), "--key", "nobody")
    assert "--key nobody: expected a column of" in error
    error = refusal(
        capsys, write(tmp_path / "d.csv", plain), "--time-format", "%H", "--time", "time"
    )
    assert "--time time: expected times, got '2024-01-01T00:00:00'" in error
    error = refusal(capsys, write(tmp_path / "e.csv", [["a", "b"], ["x", "y"], ["x", "z"]]))
    assert "expected at least one column of numbers that change" in error


def test_a_log_of_texts_alone_is_pointed_to_what_reads_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [["key", "body"], *([f"k{n % 5}", f"some words of number {n}"] for n in range(90))]
    assert "; 'body' is text: see data.text in training/MODELS.md" in refusal(
        capsys, write(tmp_path / "texts.csv", texts)
    )


def test_words_among_the_numbers_of_json_are_rejects_as_when_served(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    rows = [{"id": "m1", "ts": START.timestamp() + i, "a": wave(i)} for i in range(400)]
    rows[7]["a"] = rows[90]["a"] = rows[91]["a"] = "off"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = init(tmp_path, str(file))["data"]
    assert "null_words" not in data
    text = (tmp_path / "training.toml").read_text(encoding="utf-8")
    assert "# 3 rows have a word where a number should be: rejects." in text
    assert '# Words stand where numbers should: "off".' in text


def test_broken_lines_are_said_and_stop_the_training_until_a_person_allows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "log.jsonl", tmp_path / "training.toml"
    lines = [json.dumps({"id": "a", "ts": 1_700_000_000 + i, "x": wave(i)}) for i in range(600)]
    lines = [line[:10] if i % 3 == 0 else line for i, line in enumerate(lines)]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert main(["init", str(file), "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "200 lines cannot be read (first: line 1)" in printed
    assert "33.3% of the lines are rejects: training will stop; to allow so many" in printed
    text = out.read_text(encoding="utf-8")
    assert "# 200 lines cannot be read (first: line 1): rejects." in text
    assert read_config(out).data.max_reject_share == 0.01
    with pytest.raises(DataError, match=r"data\.max_reject_share"):
        read_log(read_config(out))
    out.write_text(text.replace("# max_reject_share", "max_reject_share"), encoding="utf-8")
    assert read_log(read_config(out)).rejected == 200


def test_files_whose_columns_differ_are_said_and_files_of_another_kind_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [1_700_000_000 + i for i in range(60)]
    one, two, other = (
        write(tmp_path / name, [columns, *([t, *(f"{wave(t, n):.2f}" for n in range(more))]
              for t in times)])
        for name, columns, more in (("a.csv", ["time", "x", "y"], 2),
                                    ("b.csv", ["time", "x", "z"], 2),
                                    ("c.csv", ["time", "u", "v", "w"], 3))
    )  # fmt: skip
    init(tmp_path, one, two)
    said = f"columns differ: {two} is without 'y', with 'z' besides"
    assert said in " ".join(capsys.readouterr().out.split())
    error = refusal(capsys, one, other)
    assert f"{other}: expected the columns of {one}, got a file without 'x', 'y', with 'u'" in error


def test_a_damaged_gz_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress(b"time,a\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(5000)))
    for name, content in (("cut", whole[:-500]), ("bad", b"no gzip at all")):
        file = tmp_path / f"{name}.csv.gz"
        file.write_bytes(content)
        assert f"{name}.csv.gz: expected a table as text" in refusal(capsys, str(file))


@pytest.mark.parametrize(
    ("separator", "cell"), [(";", "1.234,5"), ("\t", "1,234.5"), (";", "12 345,6")]
)
def test_signs_between_thousands_are_told_from_free_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], separator: str, cell: str
) -> None:
    rows: list[list[object]] = [["time", "power"]]
    rows += [[1_700_000_000 + i, f"{cell[:-1]}{i % 10}" if i % 3 else "7"] for i in range(90)]
    error = refusal(capsys, write(tmp_path / "only.csv", rows, separator))
    assert "power: numbers written as text with signs between thousands, such as" in error
    wide = [[*row, "a" if n == 0 else n * n % 7] for n, row in enumerate(rows)]
    data = init(tmp_path, write(tmp_path / "wide.csv", wide, separator))["data"]
    assert data["features"] == ["a"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "power: numbers written as text with signs between thousands" in printed


@pytest.mark.parametrize(("rows", "rate"), [(40_000, 0.001), (6000, 0.0056), (1000, 0.01)])
def test_the_anomaly_rate_leaves_some_validation_events_above_the_threshold(
    tmp_path: Path, rows: int, rate: float
) -> None:
    table: list[list[object]] = [["time", "a"]]
    table += [[1_700_000_000 + i, f"{wave(i):.2f}"] for i in range(rows)]
    settings = init(tmp_path, write(tmp_path / "log.csv", table))
    assert settings["forecast"]["anomaly_rate"] == rate
    text = (tmp_path / "training.toml").read_text(encoding="utf-8")
    assert ("Validation has about" in text) == (rate > 0.001)


def test_a_log_too_short_to_calibrate_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table: list[list[object]] = [["time", "a"]]
    table += [[1_700_000_000 + i, f"{wave(i):.2f}"] for i in range(200)]
    init(tmp_path, write(tmp_path / "log.csv", table))
    assert "only 30 validation events: scores cannot be calibrated" in capsys.readouterr().out
    text = " ".join((tmp_path / "training.toml").read_text(encoding="utf-8").split())
    assert "Validation has only about 30 events" in text


@pytest.mark.parametrize(("suffix", "way"), [("csv", "data.null_words"), ("jsonl", "send null")])
def test_a_number_that_stands_for_no_value_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, way: str
) -> None:
    rows = [[1_700_000_000 + i, -999 if i % 50 == 9 else wave(i)] for i in range(200)]
    file = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        write(file, [["time", "temp"], *rows])
    else:
        file.write_text("".join(json.dumps({"time": t, "temp": x}) + "\n" for t, x in rows))
    init(tmp_path, str(file))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"temp has -999 (4 times): if that means no value, {way}" in printed
    text = (tmp_path / "training.toml").read_text(encoding="utf-8")
    assert "# Far outside the range of all other values, and learned as numbers: temp" in text


def test_a_round_number_within_the_range_is_no_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[1_700_000_000 + i, 999 if i % 9 == 0 else 700 + i * 7 % 301] for i in range(200)]
    init(tmp_path, write(tmp_path / "log.csv", [["time", "rpm"], *rows]))
    assert "999" not in capsys.readouterr().out


def test_whole_numbers_that_are_0_and_1_are_booleans_beside_other_numbers(tmp_path: Path) -> None:
    rows = [[1_700_000_000 + i, i // 7 % 2, f"{wave(i):.2f}"] for i in range(100)]
    data = init(tmp_path, write(tmp_path / "log.csv", [["time", "on", "a"], *rows]))["data"]
    assert (data["features"], data["booleans"]) == (["a", "on"], ["on"])
    only = [row[:2] for row in rows]
    file = write(tmp_path / "only.csv", [["time", "on"], *only])
    assert "booleans" not in init(tmp_path, file, "--force")["data"]


def test_too_few_rows_are_refused_with_how_many_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[list[object]] = [["time", "a"]]
    rows += [[1_700_000_000 + i, f"{wave(i):.2f}"] for i in range(20)]
    error = refusal(capsys, write(tmp_path / "log.csv", rows[:4]))
    assert "expected at least 20 rows with a time and a key" in error
    assert "got 3; take a longer log" in error
    init(tmp_path, write(tmp_path / "log.csv", rows))


def test_an_object_that_was_null_once_is_not_called_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = []
    rows += [{"time": 1_700_000_000 + i, "r": {"a": wave(i)}} for i in range(60)]
    rows[5]["r"] = None
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert init(tmp_path, str(file))["data"]["features"] == ["r.a"]
    assert "left out" not in capsys.readouterr().out
    assert "left out" not in (tmp_path / "training.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("hours_left", "The label falls to the end of each key: whole keys are held out."),
        ("vendor", "The label is the same throughout a key: whole keys are held out."),
        ("", "Most keys end before the log does, as runs to a failure: whole keys are held out."),
    ],
)
def test_keys_that_run_to_an_end_are_held_out_whole(tmp_path: Path, label: str, why: str) -> None:
    rows: list[list[object]] = [["unit", "time", "a", "hours_left", "vendor"]]
    for key in range(10):
        life = 300 if label else 100 + 20 * key
        rows += [
            [f"u{key}", 1_700_000_000 + 60 * i, f"{wave(i, key):.2f}", life - i, f"v{key % 3}"]
            for i in range(life)
        ]
    told = ("--label", label) if label else ()
    assert init(tmp_path, write(tmp_path / "log.csv", rows), *told)["split"]["by"] == "key"
    text = (tmp_path / "training.toml").read_text(encoding="utf-8")
    assert why in " ".join(text.replace("#", "").split())


def test_keys_that_live_on_are_held_out_by_time(tmp_path: Path) -> None:
    rows: list[list[object]] = [["unit", "time", "a"]]
    rows += [[f"u{k}", 1_700_000_000 + 60 * i, wave(i, k)] for k in range(10) for i in range(300)]
    assert init(tmp_path, write(tmp_path / "log.csv", rows))["split"]["by"] == "time"


def test_an_option_in_what_is_printed_is_never_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "received by the gateway on the roof of the second hall at"
    rows = [[*(f"2026-04-03T08:{i:02d}:{s}Z" for s in ("17", "00")), wave(i)] for i in range(60)]
    init(tmp_path, write(tmp_path / "l.csv", [[name, "measured_at", "a"], *rows]))
    printed = capsys.readouterr().out
    assert f"--time {name}" in " ".join(printed.split())
    own = [line for line in printed.splitlines() if str(tmp_path) not in line]
    assert not [line for line in own if len(line) > 80]
