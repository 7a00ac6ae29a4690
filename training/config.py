"""The settings of a training run: one TOML file, environment and flags, one frozen object.

Owns every setting's name, default and meaning, and refuses contradictions by name. It knows nothing
of Keras or of files' contents. Read by the commands (cli.py); everything else of this package is
handed the section it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from keyfold.export import settings
from keyfold.export.connection import Connection, Security
from keyfold.export.settings import SettingsError
from keyfold.export.tables import is_csv
from keyfold.export.text import Text as TextSpec
from keyfold.training.settings_data import Data, Forecast, Labels
from keyfold.training.settings_fit import WIDE, Fit
from keyfold.training.settings_generate import Generate
from keyfold.training.settings_model import Model
from keyfold.training.settings_outputs import Outputs
from keyfold.training.settings_text import Text

__all__ = [
    "Config",
    "Data",
    "Fit",
    "Forecast",
    "Generate",
    "Kafka",
    "Labels",
    "Model",
    "Outputs",
    "SettingsError",
    "Split",
    "Text",
    "read_config",
]

PREFIX = "KEYFOLD_TRAIN_"
WHOLE = "with data.kind = 'transcription'"


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
    target: Text = field(default_factory=Text)  # how data.target_text does
    generate: Generate = field(default_factory=Generate)  # how events are answered by symbols
    outputs: Outputs = field(default_factory=Outputs)  # what predictions hold
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
        self._check_fused()
        self._check_text()
        self._check_transcription()
        self._check_outputs()
        self._check_pairs()
        self._check_generate()
        self._check_answers()
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

    def _check_answers(self) -> None:
        """Refuse answers about other events, or at every symbol, where they mean nothing."""
        data, outputs, steps = self.data, self.outputs, self.data.text and not self.text.width
        used = "outputs.answers = 'session'" if outputs.answers == "session" else ""
        used = used or ("model.look_ahead" if self.model.look_ahead else "")
        if used and data.kind not in ("regression", "classification"):
            raise SettingsError(f"{used}: expected data.label, a number or a class, with it")
        if used and (outputs.read == "every" or (outputs.answers != "event" and self.model.delay)):
            raise SettingsError(
                f"{used}: expected it alone, without model.look_ahead and outputs.read = 'every'"
            )
        if self.model.look_ahead and steps:
            raise SettingsError("model.look_ahead: expected no data.text whose symbols are steps")
        if outputs.answers == "session" and not data.events().ends:
            raise SettingsError(
                "outputs.answers: expected data.end_field, data.reset_after_s or data.tombstone = "
                "'reset' with 'session', got none: no session would ever end"
            )
        if outputs.read == "every" and (not steps or self.generate != Generate()):
            raise SettingsError(
                "outputs.read: expected data.text, without text.width and [generate], with 'every'"
            )

    def _check_fused(self) -> None:
        """Refuse fit.fused where no layer is one that it computes."""
        model = self.model
        plain = model.cell == "lstm" and model.family not in ("transformer", "bidirectional")
        if self.fit.fused and (not plain or min(model.units) >= WIDE or model.recurrent_dropout):
            raise SettingsError(
                f"fit.fused: expected LSTM layers below {WIDE} units without "
                f"model.recurrent_dropout, got family {model.family!r}, cell {model.cell!r}, units "
                f"{list(model.units)}, recurrent_dropout {model.recurrent_dropout:g}"
            )

    def _check_transcription(self) -> None:
        """Refuse what would take a sequence apart: its symbols are known for all of it only."""
        if self.data.kind != "transcription":
            return
        if self.split.by != "key":
            raise SettingsError(f"split.by: expected 'key' {WHOLE}, got {self.split.by!r}")
        if self.labels.files:
            raise SettingsError(f"labels.files: expected none {WHOLE}: it stands in the events")
        for name in ("stretch", "random_start", "skip_first"):
            if getattr(self.fit, name):
                raise SettingsError(f"fit.{name}: expected 0 {WHOLE}: sequences stay whole")
        if self.data.text and not self.text.width:
            raise SettingsError(f"data.text: expected features {WHOLE}, or text.width beside them")

    def _check_text(self) -> None:
        data, width = self.data, self.text.width if self.data.text else 0
        if data.text and self.model.tokens:
            raise SettingsError("model.tokens: expected none with data.text: symbols are counted")
        if not data.text and self.model.embedding and not self.model.tokens:
            raise SettingsError(
                "model.embedding: expected it and tokens positive together, or both 0, got "
                f"{self.model.embedding} and 0"
            )
        if data.text and not data.features and self.forecast != Forecast():
            raise SettingsError(f"[forecast]: expected none with data.text = {data.text!r}")
        varied = [n for n in ("input_noise", "input_gain") if getattr(self.model, n)]
        varied = varied if data.text and not data.features else []
        if data.text and (self.model.family == "frames" or varied):
            what = f"{varied[0]} = 0" if varied else "another family than 'frames'"
            raise SettingsError(f"model: expected {what} with data.text: symbols are no readings")
        if not data.text and self.text != Text():
            raise SettingsError("[text]: expected data.text, the name of the member, with it")
        if data.text and not width and (data.features or data.since_last):
            raise SettingsError(
                "data.features: expected names of features, or one text (data.text), got both: "
                "with text.width = 32, say, an event's text is read inside its one step"
            )
        if width and not data.features and not data.label:
            raise SettingsError("data.label: expected one, or data.features, with text.width")
        if not width and self.model.reads_inside:
            raise SettingsError("model.encoders: expected no setting of theirs without text.width")

    def _check_generate(self) -> None:
        """Refuse answers by symbols where there are none, or without an end."""
        data, given = self.data, self.generate
        if given == Generate():
            return
        if data.label or data.features or not data.text:
            raise SettingsError(
                "[generate]: expected data.text and neither a label nor features with it: an "
                "event is answered by the symbols that follow"
            )
        if not given.most and not data.target_text:
            raise SettingsError("generate.most: expected how many symbols an answer has at most")
        if self.outputs.top or self.outputs.likelihood:
            raise SettingsError("[generate]: expected neither outputs.top nor outputs.likelihood")

    def _check_pairs(self) -> None:
        """Refuse what has no meaning for a source and its answer, and answers where none are."""
        data, pairs = self.data, "with data.target_text"
        is_family = self.model.family == "seq2seq"
        if is_family != bool(data.target_text):
            raise SettingsError(
                f"model.family: expected 'seq2seq' {pairs}, and only there, got "
                f"{self.model.family!r}"
            )
        if not data.target_text:
            if self.target != Text():
                raise SettingsError(f"[target]: expected it {pairs} alone")
            return
        if self.split.by != "key":
            raise SettingsError(f"split.by: expected 'key' {pairs}, got {self.split.by!r}")
        if self.text.width or self.target.width:
            raise SettingsError(f"text.width, target.width: expected 0 {pairs}")
        for name in ("stretch", "random_start", "skip_first"):
            if getattr(self.fit, name):
                raise SettingsError(f"fit.{name}: expected 0 {pairs}: pairs stay whole")

    @property
    def read_text(self) -> TextSpec:
        """The tokenizer of data.text before anything is learned."""
        spec = self.text.spec(self.data.text)
        if not self.data.target_text:
            return spec
        # What was read is kept for as many symbols, the end symbol included.
        return replace(spec, max_symbols=max(1, min(spec.max_symbols, self.model.window - 1)))

    @property
    def said_text(self) -> TextSpec | None:
        """The tokenizer of data.target_text before anything is learned; None: there is none."""
        name = self.data.target_text
        return self.target.spec(name) if name else None

    def _check_outputs(self) -> None:
        data = self.data
        next_symbols = bool(data.text) and not (data.label or data.features or data.target_text)
        if self.outputs.likelihood and self.outputs.read == "every":
            raise SettingsError(
                "outputs.read: expected 'last' with outputs.likelihood, got 'every'"
            )
        if self.outputs.likelihood and not next_symbols:
            raise SettingsError(
                "outputs.likelihood: expected data.text and neither a label nor features with it: "
                "a text is scored by a model of its next symbols"
            )
        if self.outputs.top and not next_symbols and data.kind != "classification":
            raise SettingsError(
                "outputs.top: expected a classification or next symbols with it, got "
                f"{data.kind or 'forecasts'}"
            )

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
