"""Settings of a training run: what is refused, and by which name."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyfold.training.config import (
    Config,
    Data,
    Forecast,
    SettingsError,
    Split,
    read_config,
)

GOOD = """
[data]
files = ["log.jsonl"]
features = ["a", "b"]
label = "y"
kind = "regression"
[split]
by = "key"
validation_share = 0.2
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_short_config_is_enough(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD), environment={})
    assert config.data.features == ("a", "b")
    assert config.model.units == (64,)


def test_numbered_features_are_spelt_out(tmp_path: Path) -> None:
    text = GOOD.replace('["a", "b"]', '["a", "s{8..11}.raw", "x{1..}", "n{2..2}"]')
    features = read_config(write(tmp_path, text), environment={}).data.features
    assert features == ("a", "s8.raw", "s9.raw", "s10.raw", "s11.raw", "x{1..}", "n2")


def test_a_flag_wins_over_the_environment_and_the_file(tmp_path: Path) -> None:
    config = read_config(
        write(tmp_path, GOOD + "[fit]\nrows = 4\nwindow = 8\n"),
        ["fit.rows=6", "model.units=32,16"],
        {"KEYFOLD_TRAIN_FIT__ROWS": "5", "KEYFOLD_TRAIN_FIT__WINDOW": "9"},
    )
    assert (config.fit.rows, config.fit.window, config.model.units) == (6, 9, (32, 16))


def test_an_unknown_setting_fails_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown setting fit\.epochs"):
        read_config(write(tmp_path, GOOD + "[fit]\nepochs = 3\n"), environment={})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('label = "y"', 'label = "a"'), r"data\.label"),
        (('"a", "b"', '"s{3..1}"'), r"data.*features: expected up to 10,000 rising numbers in"),
        (('"a", "b"', '"s{1..10001}"'), r"data.*features: expected up to 10,000 rising numbers in"),
        (('files = ["log.jsonl"]', ""), r"data\.files"),
        (("validation_share = 0.2", ""), r"split\.validation_keys"),
        (("validation_share = 0.2", 'validation_from = "2026-01-01"'), "validation_from"),
        (('by = "key"', 'by = "time"'), r"split\.by: expected data\.time_field with 'time'"),
        (("validation_share = 0.2", "validation_share = 1.0"), "validation_share"),
        (('kind = "regression"', 'kind = "regression"\nclasses = ["p", "q"]'), r"data\.classes"),
        (('kind = "regression"', 'kind = "classification"\nlabel_cap = 1.0'), r"data\.label_cap"),
        (("[split]", '[kafka]\nbrokers = "b:1"\n[split]'), r"kafka\.topic"),
        (("[split]", "[model]\nunits = []\n[split]"), r"model\.units"),
        (("[split]", "[model]\ndropout = 1.0\n[split]"), r"model\.dropout"),
        (("[split]", '[model]\ncell = "gru"\nmemory = 9\n[split]'), r"model\.memory"),
        (("[split]", "[fit]\nwindow = 0\n[split]"), r"fit\.window"),
        (("[split]", "[fit]\naverage = 1.0\n[split]"), r"fit\.average"),
    ],
)
def test_contradictory_settings_are_refused_by_name(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    with pytest.raises(SettingsError, match=expected):
        read_config(write(tmp_path, GOOD.replace(*change)), environment={})


@pytest.mark.parametrize(
    "name",
    [
        *(f"cmapss_fd00{number}" for number in range(1, 5)),
        "fsdd",
        "fsdd_strings",
        "japanese_vowels",
        "smap",
        "smartwatch",
    ],
)
def test_the_recipes_of_this_repository_are_valid(name: str) -> None:
    folder = Path(__file__).parents[2] / "training" / "configs"
    assert read_config(folder / f"{name}.toml", environment={}).data.files


@pytest.mark.parametrize("wrong", ["0.0", "0.0001", "-1.0", "inf", "nan"])
def test_a_limit_of_silence_is_at_least_a_millisecond(tmp_path: Path, wrong: str) -> None:
    text = GOOD.replace("[split]", f'time_field = "t"\nreset_after_s = {wrong}\n[split]')
    with pytest.raises(SettingsError, match=r"data\.reset_after_s: expected 0\.001 to"):
        read_config(write(tmp_path, text), environment={})


def test_a_limit_of_silence_needs_the_times_of_events(tmp_path: Path) -> None:
    text = GOOD.replace("[split]", "reset_after_s = 1800\n[split]")
    with pytest.raises(SettingsError, match=r"reset_after_s: expected a time_field"):
        read_config(write(tmp_path, text), environment={})
    timed = text.replace("[split]", 'time_field = "t"\n[split]')
    assert read_config(write(tmp_path, timed), environment={}).data.reset_after_ms == 1_800_000


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"label": "y"},
            r"kind: expected 'regression', 'classification' or 'transcription' with label = 'y'",
        ),
        ({"kind": "regression"}, "label: expected a field with kind = 'regression', got none"),
        ({"booleans": ("z",)}, "booleans: expected names of features, got 'z'"),
        ({"booleans": ("a",), "categories": ("a",)}, "booleans: 'a' is also in categories"),
        ({"long_name": "s"}, "long_name: expected long_name and long_value together"),
        (
            {"long_name": "s", "long_value": "v"},
            "missing: expected 'last' or 'mask' with long_name",
        ),
        ({"files": ("f",), "since_last": True}, "since_last: expected a time_field"),
        ({"time_unit": "hours"}, "time_unit: expected 'ms', 's', 'us', 'ns', 'iso' or a pattern"),
        ({"time_zone": "Mars"}, "time_zone: expected a zone such as 'Europe/Berlin'"),
    ],
)
def test_a_contradiction_in_data_is_named(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Data(**{"features": ("a",), **settings})  # type: ignore[arg-type]


def test_forecasts_contradictions_are_named() -> None:
    with pytest.raises(ValueError, match="horizons: expected 1 among them, or anomaly = false"):
        Forecast(horizons=(2,))
    with pytest.raises(ValueError, match="quantiles: expected ascending numbers between 0 and 1"):
        Forecast(quantiles=(0.9, 0.1))
    data = Data(features=("a",), files=("f",), standardise_by_key=("a",))
    with pytest.raises(
        SettingsError, match=r"forecast\.fields: 'a' is in data\.standardise_by_key"
    ):
        Config(data, Split(by="order", validation_share=0.1), forecast=Forecast(fields=("a",)))
    labelled = Data(features=("a",), files=("f",), label="y", kind="regression")
    with pytest.raises(SettingsError, match=r"\[forecast\]: expected none with data\.label = 'y'"):
        Config(
            labelled,
            Split(by="order", validation_share=0.1),
            forecast=Forecast(horizons=(1, 2)),
        )


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ((), r"log\.jsonl"),
        (('files = ["log.jsonl"]', 'files = ["a.csv.gz", "b.parquet"]'), r"b\.parquet"),
        (('files = ["log.jsonl"]', '[kafka]\nbrokers = "b:1"\ntopic = "t"\n[data]'), "kafka.topic"),
    ],
)
def test_words_for_nothing_are_of_csv_cells_only(
    tmp_path: Path, change: tuple[str, str] | tuple[()], got: str
) -> None:
    text = GOOD.replace("[split]", 'null_words = ["off-line"]\n[split]')
    if change:
        text = text.replace("[data]\n", "", int("kafka" in change[1])).replace(*change)
    expected = rf"data\.null_words: expected CSV files .*got {got}: .* has to send null"
    with pytest.raises(SettingsError, match=expected):
        read_config(write(tmp_path, text), environment={})
    csv = text.replace("log.jsonl", "log.csv").replace("b.parquet", "b.tsv")
    if "kafka" not in csv:
        assert read_config(write(tmp_path, csv), environment={}).data.null_words == ("off-line",)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        ('cell = "gru"', r"family 'recurrent', cell 'gru'"),
        ('family = "transformer"\nwindow = 8', "family 'transformer'"),
        ("units = [128, 256]", r"units \[128, 256\]"),
        ("recurrent_dropout = 0.1", "recurrent_dropout 0.1"),
    ],
)
def test_fused_is_refused_where_no_layer_is_computed_by_it(
    tmp_path: Path, model: str, got: str
) -> None:
    with pytest.raises(SettingsError, match=rf"fit\.fused: expected LSTM layers below 128.*{got}"):
        read_config(
            write(tmp_path, f"{GOOD}[model]\n{model}\n[fit]\nfused = true\n"), environment={}
        )
    text = GOOD + "[model]\nunits = [256, 64]\n[fit]\nfused = true\n"
    assert read_config(write(tmp_path, text), environment={}).fit.fused
