"""The settings of a training run: one TOML file, environment and flags, one frozen object.

Owns every setting's name, default and meaning, and refuses contradictions by name. It knows nothing
of Keras or of files' contents. Read by the commands (cli.py); everything else of this package is
handed the section it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from keyfold.export import settings
from keyfold.export.settings import SettingsError

__all__ = ["Config", "Data", "Fit", "Kafka", "Model", "SettingsError", "Split", "read_config"]

PREFIX = "KEYFOLD_TRAIN_"
MAX_RESET_AFTER_S = 8.64e12  # as far as event times go


@dataclass(frozen=True, slots=True)
class Data:
    """The event log and what of an event is used."""

    features: tuple[str, ...]  # fields that become the model's inputs, in tensor order
    label: str  # field to predict; an event where it is missing or null shapes the state only
    kind: Literal["regression", "classification"]  # of the prediction made at every event
    files: tuple[str, ...] = ()  # event logs, .jsonl, .csv or .parquet (also .gz), in log order
    key_field: str = "key"  # whose history a file's event belongs to; Kafka: the record key
    time_field: str | None = None  # event time; unset: the record's timestamp (files: 0)
    time_unit: Literal["ms", "s"] = "ms"  # of time_field, since 1970-01-01 UTC
    tombstone: Literal["reject", "reset"] = "reject"  # a record with a null value
    # A key silent for longer, by its own event times, starts anew, in training as when served; the
    # worker also counts the stream's time, so that it may forget silent keys. Unset: never.
    reset_after_s: float | None = None
    classes: tuple[str, ...] = ()  # classification: labels in output order; default: as found
    label_cap: float | None = None  # regression: larger labels count as this much
    max_reject_share: float = 0.01  # of all records; with more rejects the run stops

    def __post_init__(self) -> None:
        if self.label in self.features:
            raise ValueError(f"label: expected a field that is no feature, got {self.label!r}")
        after_s = self.reset_after_s
        if after_s is not None and not 0.001 <= after_s <= MAX_RESET_AFTER_S:
            raise ValueError(
                f"reset_after_s: expected 0.001 to {MAX_RESET_AFTER_S:g}, got {after_s}"
            )
        if after_s is not None and self.files and self.time_field is None:
            raise ValueError("reset_after_s: expected a time_field: a file's row has no timestamp")
        if self.kind == "regression" and self.classes:
            raise ValueError("classes: expected none for kind = 'regression'")
        if self.kind == "classification" and self.label_cap is not None:
            raise ValueError("label_cap: expected none for kind = 'classification'")

    @property
    def reset_after_ms(self) -> int | None:
        """Silence after which a key starts anew, as the bundle says it."""
        return None if self.reset_after_s is None else round(self.reset_after_s * 1000)


@dataclass(frozen=True, slots=True)
class Kafka:
    """A topic to train from, in place of files."""

    brokers: str = ""  # "host:port,host:port"; empty: train from data.files
    topic: str = ""  # the event topic
    start: str = "earliest"  # "earliest", an offset of every partition, or a time in ISO 8601
    end: str = "latest"  # "latest" (as of the start of reading), an offset (exclusive) or a time
    timeout_s: float = 30.0  # longest silence before reading is given up

    def __post_init__(self) -> None:
        if bool(self.brokers) != bool(self.topic):
            raise ValueError("topic: expected brokers and topic together, or neither")


@dataclass(frozen=True, slots=True)
class Split:
    """Which events train, which choose (validation) and which only report (test)."""

    by: Literal["key", "time"]  # whole keys, or a key's earlier events against its later ones
    validation_keys: tuple[str, ...] = ()  # by key: names or patterns such as "subject-07-*"
    test_keys: tuple[str, ...] = ()  # by key: likewise
    validation_share: float = 0.0  # by key: of the keys not named, drawn with the seed
    test_share: float = 0.0  # by key: likewise
    seed: int = 0  # of the draw; apart from fit.seed, so that seeds can share a split
    validation_from: str = ""  # by time: ISO 8601; a key's events from its first one at or after
    test_from: str = ""  # by time: likewise, later than validation_from

    def __post_init__(self) -> None:
        keyed = self.validation_keys or self.test_keys or self.validation_share or self.test_share
        timed = self.validation_from or self.test_from
        if self.by == "key" and timed:
            raise ValueError("validation_from, test_from: expected none with by = 'key'")
        if self.by == "time" and keyed:
            raise ValueError("validation_*, test_*: expected *_from only with by = 'time'")
        if self.by == "time" and not self.validation_from:
            raise ValueError("validation_from: expected a time with by = 'time'")
        if self.by == "key" and not (self.validation_keys or self.validation_share):
            raise ValueError("validation_keys: expected keys or a validation_share")
        if not 0 <= self.validation_share + self.test_share < 1:
            raise ValueError("validation_share: expected shares that leave keys to train on")


@dataclass(frozen=True, slots=True)
class Model:
    """The recurrent model."""

    cell: Literal["lstm", "gru", "simple_rnn"] = "lstm"  # of every recurrent layer
    units: tuple[int, ...] = (64,)  # of each recurrent layer, from the input on
    memory: int = 0  # LSTM: events that units remember before training, spread from 1 to so many
    dense: int = 0  # units of a ReLU layer between the last recurrent layer and the head; 0: none
    dropout: float = 0.0  # after each recurrent layer, while training
    input_noise: float = 0.0  # standard deviations of noise on scaled features, while training

    def __post_init__(self) -> None:
        if not self.units or min(self.units) < 1:
            raise ValueError(f"units: expected one or more positive numbers, got {self.units}")
        if self.memory and self.cell != "lstm":
            raise ValueError(f"memory: expected 0 with cell = {self.cell!r}, got {self.memory}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")


@dataclass(frozen=True, slots=True)
class Fit:
    """The training loop."""

    seed: int = 0  # of weights, order, dropout and noise
    rows: int = 16  # sequences trained side by side (B)
    window: int = 64  # steps that gradients flow back through (T); the state is carried on
    passes: int = 100  # most passes over the training sequences
    patience: int = 10  # passes without a better validation loss before stopping
    learning_rate: float = 3e-3  # of Adam
    clip_norm: float = 1.0  # largest norm of all gradients together
    skip_first: int = 0  # events at a sequence's start that do not count in any loss
    random_start: float = 0.0  # drop up to this share of a sequence, at its start, anew each pass
    average: float = 0.0  # decay of a moving average of the weights, which is what is kept; 0: off
    threads: int = 2  # of TensorFlow

    def __post_init__(self) -> None:
        for name in ("rows", "window", "passes", "patience", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("average", "random_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a training run."""

    data: Data  # what is learned from
    split: Split  # what is held out
    model: Model = field(default_factory=Model)  # what is learned
    fit: Fit = field(default_factory=Fit)  # how
    kafka: Kafka = field(default_factory=Kafka)  # another source than files

    def __post_init__(self) -> None:
        if bool(self.data.files) == bool(self.kafka.topic):
            raise SettingsError("data.files: expected files, or kafka.topic, and not both")


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
