"""keyfold-worker init: a worker.toml that is valid as it stands and with every setting taken."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from keyed_bundle import make_keyed_bundle
from text_bundle import make_text_bundle
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.event_spec import EventSpec
from keyfold.export.events import Decoder
from keyfold.export.features import FeatureSpec, Field, LongForm
from keyfold.worker import cli
from keyfold.worker.config import Config, read_config
from keyfold.worker.first_day.example_events import FIRST_MS, example_events

COMMENTED = re.compile(r"^#(?=\w+ = )", re.MULTILINE)


@pytest.fixture
def init(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Path]]:
    """Return a function that runs init in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, Path]:
        return cli.main(["init", str(bundle.path), *words]), tmp_path / "worker.toml"

    return run


def test_file_is_valid_as_it_stands(init: Callable[..., tuple[int, Path]], bundle: Bundle) -> None:
    status, file = init()
    assert status == 0
    config = read_config(file, (), {})
    assert config.worker.bundle == bundle.path
    assert config.worker.start == "earliest"
    assert (config.kafka.input, config.kafka.output) == ("events", "events-predictions")


def test_password_as_a_flag_is_refused_and_not_written(
    init: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, file = init("--redis", "rediss://kf:guess-me@other:1/3")
    assert status == 2
    assert not file.exists()
    said = capsys.readouterr().err
    assert "redis.password_file in worker.toml" in said
    assert "guess-me" not in said


def test_what_was_given_stands_in_the_file(init: Callable[..., tuple[int, Path]]) -> None:
    words = ["--brokers", "a:1,b:2", "--input", "pumps", "--output", "out", "--group", "g"]
    status, file = init(*words, "--redis", "redis://other:1/3")
    assert status == 0
    config = read_config(file, (), {})
    assert (config.kafka.brokers, config.kafka.input) == ("a:1,b:2", "pumps")
    assert (config.kafka.output, config.kafka.group) == ("out", "g")
    assert config.redis.url == "redis://other:1/3"
    assert "--topic pumps.rejects" in file.read_text()


def certificates(folder: Path) -> None:
    """Make the files that the commented-out settings name."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", "client.key", "-out", "client.pem", "-subj", "/CN=x"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    for name in ("ca.pem", "redis-ca.pem"):
        (folder / name).write_bytes((folder / "client.pem").read_bytes())
    for name in ("kafka.secret", "redis.secret"):
        (folder / name).write_text("hidden\n")


def test_every_commented_out_setting_is_valid(
    init: Callable[..., tuple[int, Path]], tmp_path: Path
) -> None:
    _, file = init("--redis", "rediss://localhost:6379/0")
    text = file.read_text()
    assert len(COMMENTED.findall(text)) > 15
    file.write_text(COMMENTED.sub("", text))
    certificates(tmp_path)
    config = read_config(file, (), {})
    assert config.security.protocol == "sasl_ssl"
    assert config.security.password == "hidden"
    assert config.worker.outputs == "exactly-once"


def test_every_setting_is_known_by_name(init: Callable[..., tuple[int, Path]]) -> None:
    # Also the sections that a validation of values would not reach.
    _, file = init()
    taken = tomllib.loads(COMMENTED.sub("", file.read_text()))
    sections = get_type_hints(Config)
    for section, settings in taken.items():
        known = {item.name for item in fields(sections[section])}
        unknown = {n for n in settings if n not in known and n.removesuffix("_file") not in known}
        assert not unknown, section


def test_example_events_are_accepted_and_their_predictions_stand_there(
    init: Callable[..., tuple[int, Path]], bundle: Bundle
) -> None:
    _, file = init()
    shown = [line[4:] for line in file.read_text().splitlines() if line.startswith("#   {")]
    events = [line.encode() for line in shown if '"about"' not in line]
    decoder = Decoder(bundle.manifest.events, bundle.manifest.features)
    assert len(events) == 3
    assert not decoder.decode(events, [0] * 3).rejects
    predictions = [json.loads(line) for line in shown if '"about"' in line]
    assert [p["steps"] for p in predictions] == [1, 2, 3]
    assert {p["bundle"] for p in predictions} == {bundle.id}


def test_next_command_is_printed_in_80_columns(
    init: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    init()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "next: keyfold-worker check worker.toml"
    assert max(map(len, lines)) <= 80


def test_existing_file_is_kept_unless_forced(
    init: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = init()
    file.write_text("mine")
    status, _ = init()
    assert status == 2
    assert file.read_text() == "mine"
    assert "worker.toml: exists already; --force replaces it" in capsys.readouterr().err
    assert init("--force")[0] == 0
    assert file.read_text() != "mine"


def test_folder_without_a_bundle_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(tmp_path / "nope"), "--out", str(tmp_path / "w.toml")]) == 2
    assert f"{tmp_path / 'nope'}: expected a bundle" in capsys.readouterr().err
    assert not (tmp_path / "w.toml").exists()


# -- example events of every kind of bundle --------------------------------------------------------

NUMBER, FLAG = Field("readings.temp"), Field("on", "boolean")
COLOUR = Field("colour", "category", ("red", "blue"), missing="mask")
MAYBE = Field("readings.rpm", missing="last", standardise=True)


def spec_bundle(bundle: Bundle, features: FeatureSpec, events: EventSpec) -> Bundle:
    """Return a bundle of another spec, with golden rows of its width; its graph is not run."""
    width = len(features.columns)
    x = np.random.default_rng(3).normal(20, 5, (2, 4, width)).astype(np.float32)
    golden = replace(bundle.golden, x=x, lengths=np.array([4, 2], np.int32))
    manifest = replace(bundle.manifest, features=features, events=events)
    return replace(bundle, manifest=manifest, golden=golden)


@pytest.mark.parametrize("unit", ["ms", "s", "us", "ns", "iso", "%d.%m.%Y %H:%M:%S"])
def test_example_has_the_bundle_s_time_format(bundle: Bundle, unit: str) -> None:
    events = EventSpec("machine", "when", unit)
    made = example_events(spec_bundle(bundle, FeatureSpec((NUMBER, FLAG, COLOUR, MAYBE)), events))
    decoder = Decoder(events, FeatureSpec((NUMBER, FLAG, COLOUR, MAYBE)))
    decoded = decoder.decode([e.value for e in made], [0] * 3)
    assert decoded.times_ms.tolist() == [FIRST_MS, FIRST_MS + 1000, FIRST_MS + 2000]


def test_example_has_nested_members_kinds_and_the_key_field(bundle: Bundle) -> None:
    features = FeatureSpec((NUMBER, FLAG, COLOUR, MAYBE), since_last=True)
    made = example_events(spec_bundle(bundle, features, EventSpec("id.machine", "time", "ms")))
    event: dict[str, Any] = json.loads(made[0].value)
    assert event["id"] == {"machine": "machine-1"}
    assert set(event["readings"]) == {"temp", "rpm"}
    assert isinstance(event["on"], bool)
    assert event["colour"] in ("red", "blue")


def test_example_of_the_long_form_has_one_sensor_per_event(bundle: Bundle) -> None:
    features = FeatureSpec(
        (Field("temp", missing="last"), Field("rpm", missing="last")), long=LongForm("what", "is")
    )
    made = example_events(spec_bundle(bundle, features, EventSpec("machine", "time", "ms")))
    assert [json.loads(e.value)["what"] for e in made] == ["temp", "rpm", "temp"]


def test_time_that_comes_from_the_record_is_no_member(bundle: Bundle) -> None:
    spec = EventSpec("machine", None, "ms")
    made = example_events(spec_bundle(bundle, FeatureSpec((NUMBER,)), spec))
    assert set(json.loads(made[0].value)) == {"machine", "readings"}


def test_bundles_of_classes_are_shown_too(tmp_path: Path) -> None:
    made = make_tiny_bundle(tmp_path / "bundles", kind="classification")
    out = tmp_path / "w.toml"
    assert cli.main(["init", str(made.path), "--out", str(out)]) == 0
    assert '"probabilities"' in out.read_text()


def test_bundle_of_every_kind_of_field_is_shown_in_a_valid_file(tmp_path: Path) -> None:
    made = make_keyed_bundle(tmp_path / "bundles")
    out = tmp_path / "w.toml"
    assert cli.main(["init", str(made.path), "--out", str(out)]) == 0
    assert read_config(out, (), {}).worker.bundle == made.path
    text = out.read_text()
    assert '"load": {"now": ' in text
    assert "These may be missing or null: temp, load.now, on, mode, rpm." in text.replace(
        "\n# ", " "
    )
    assert '"forecast":{"temp":{"1":' in text


def test_example_events_of_a_text_bundle_are_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_text_bundle(tmp_path / "bundles")
    events = [json.loads(example.value) for example in example_events(bundle)]
    assert [event["line"] for event in events] == [
        "a text",
        "another one, longer than the first",
        "",
    ]
    assert cli.main(["init", str(bundle.path)]) == 0
    said = (tmp_path / "worker.toml").read_text(encoding="utf-8")
    assert '"line": "a text"' in said
    assert "(not computed)" not in said
    assert read_config(tmp_path / "worker.toml", (), {}).worker.bundle == bundle.path
