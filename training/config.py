"""The settings of a training run: one TOML file, environment and flags, one frozen object.

Owns every setting's name, default and meaning, and refuses contradictions by name. It knows nothing
of Keras or of files' contents. Read by the commands (cli.py); everything else of this package is
handed the section it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from keyfold.export import settings
from keyfold.export.connection import Connection, Security
from keyfold.export.settings import SettingsError
from keyfold.export.tables import is_csv
from keyfold.training.settings_data import Data, Forecast, Labels
from keyfold.training.settings_fit import Fit
from keyfold.training.settings_model import Model
from keyfold.training.settings_text import Text

__all__ = [
    "Config",
    "Data",
    "Fit",
    "Forecast",
    "Kafka",
    "Labels",
    "Model",
    "SettingsError",
    "Split",
    "Text",
    "read_config",
]

PREFIX = "KEYFOLD_TRAIN_"


@dataclass(frozen=True, slots=True)
class Kafka:
    """A topic to train from, in place of files."""

    brokers: str = ""  # "host:port,host:port"; empty: train from data.files
    topic: str = ""  # the event topic
    start: str = "earliest"  # "earliest", an offset of every partition, a time in ISO 8601, or -7d
    end: str = "latest"  # "latest" (as of the start of reading), an offset (exclusive) or a time
    timeout_s: float = 30.0  # longest silence before reading is given up

    def __post_init__(self) -> None:
        if bool(self.brokers) != bool(self.topic):
            raise ValueError("topic: expected brokers and topic together, or neither")


@dataclass(frozen=True, slots=True)
class Split:
    """Which events train, which choose (validation) and which only report (test)."""

    by: Literal["key", "time", "order"]  # whole keys, or each key's later events: by time or count
    validation_keys: tuple[str, ...] = ()  # by key: names or patterns such as "subject-07-*"
    test_keys: tuple[str, ...] = ()  # by key: likewise
    validation_share: float = 0.0  # by key: of the keys not named, drawn with the seed; by order:
    test_share: float = 0.0  # of each key's events; by time: of all events; the last ones test
    seed: int = 0  # of the draw; apart from fit.seed, so that seeds can share a split
    validation_from: str = ""  # by time: ISO 8601; a key's events from its first one at or after
    test_from: str = ""  # by time: likewise, later than validation_from

    def __post_init__(self) -> None:
        shares = self.validation_share or self.test_share
        keyed = self.validation_keys or self.test_keys
        timed = self.validation_from or self.test_from
        if self.by != "time" and timed:
            raise ValueError(f"validation_from, test_from: expected none with by = {self.by!r}")
        if self.by == "order" and (keyed or not self.validation_share):
            raise ValueError("validation_share: expected one, and no keys, with by = 'order'")
        if self.by == "time" and (keyed or (timed and shares)):
            raise ValueError("validation_*, test_*: expected *_from or *_share with by = 'time'")
        if self.by == "time" and not (self.validation_from or self.validation_share):
            raise ValueError("validation_from: expected a time with by = 'time', or a share")
        if self.by == "key" and not (self.validation_keys or self.validation_share):
            raise ValueError("validation_keys: expected keys or a validation_share")
        if not 0 <= self.validation_share + self.test_share < 1:
            raise ValueError("validation_share: expected shares that leave something to train on")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a training run."""

    data: Data  # what is learned from
    split: Split  # what is held out
    model: Model = field(default_factory=Model)  # what is learned
    fit: Fit = field(default_factory=Fit)  # how
    forecast: Forecast = field(default_factory=Forecast)  # without a label
    text: Text = field(default_factory=Text)  # how data.text becomes symbols
    labels: Labels = field(default_factory=Labels)  # labels that come later, in a log of their own
    kafka: Kafka = field(default_factory=Kafka)  # another source than files
    security: Security = field(default_factory=Security)  # how that Kafka is reached

    def __post_init__(self) -> None:
        data = self.data
        if bool(data.files) == bool(self.kafka.topic):
            raise SettingsError("data.files: expected files, or kafka.topic, and not both")
        others = [file for file in data.files if not is_csv(file)]
        if data.null_words and (self.kafka.topic or others):
            raise SettingsError(
                "data.null_words: expected CSV files with it, got "
                f"{others[0] if others else 'kafka.topic'}: in such events a word is what it is, "
                "and a producer has to send null"
            )
        if data.format == "packed" and data.label and self.kafka.topic and not self.labels.files:
            raise SettingsError(
                f"data.label: expected labels.files or data.files with packed records, which hold "
                f"no {data.label!r}"
            )
        self._check_text()
        if data.label and self.forecast != Forecast():
            raise SettingsError(f"[forecast]: expected none with data.label = {data.label!r}")
        if self.labels.files and not data.label:
            raise SettingsError("labels.files: expected data.label, the name of what is predicted")
        if self.split.by == "time" and data.files and data.time_field is None:
            raise SettingsError("split.by: expected data.time_field with 'time', or by = 'order'")
        for name in self.forecast.fields:
            if name in data.standardise_by_key or name in data.categories:
                raise SettingsError(
                    f"forecast.fields: {name!r} is in data.standardise_by_key or data.categories: "
                    "the model does not see its value"
                )

    def _check_text(self) -> None:
        if self.data.text and self.model.tokens:
            raise SettingsError("model.tokens: expected none with data.text: symbols are counted")
        if not self.data.text and self.model.embedding and not self.model.tokens:
            raise SettingsError(
                "model.embedding: expected it and tokens positive together, or both 0, got "
                f"{self.model.embedding} and 0"
            )
        if self.data.text and self.forecast != Forecast():
            raise SettingsError(f"[forecast]: expected none with data.text = {self.data.text!r}")
        if self.data.text and (self.model.family == "frames" or self.model.input_noise):
            what = "input_noise = 0" if self.model.input_noise else "another family than 'frames'"
            raise SettingsError(f"model: expected {what} with data.text: symbols are no readings")
        if not self.data.text and self.text != Text():
            raise SettingsError("[text]: expected data.text, the name of the member, with it")

    @property
    def connection(self) -> Connection:
        """How the Kafka of `kafka` is reached."""
        return Connection(self.kafka.brokers, self.security)

    def record(self) -> dict[str, Any]:
        """Return what may be kept beside a run: all settings but how to get into Kafka."""
        return {name: value for name, value in asdict(self).items() if name != "security"}


def read_config(
    file: Path,
    flags: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read a run's settings. Raises SettingsError by the setting's name.

    Relative paths in the file are relative to the working directory, as in the shell.
    """
    variables = os.environ if environment is None else environment
    return settings.read(Config, file, variables, flags, PREFIX)
