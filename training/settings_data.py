"""The settings that say what is learned: [data], [forecast] and [labels].

Owns their names, defaults and meaning, and refuses contradictions within one section by name;
config.py looks across sections. It knows nothing of Keras or of files' contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from keyfold.export.errors import SpecError
from keyfold.export.event_spec import EventSpec, Format
from keyfold.export.features import Missing
from keyfold.export.format_packed import Packed
from keyfold.export.formats import format_of
from keyfold.export.outputs import Forecast as ForecastSpec

MAX_RESET_AFTER_S = 8.64e12  # as far as event times go
Kind = Literal["", "forecast", "regression", "classification", "next_symbol", "transcription"]
LABELLED = ("regression", "classification", "transcription")  # kinds that need a label
MOST_NUMBERED = 10_000  # features of one "s{1..200}"
_NUMBERED = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Data:
    """The event log and what of an event is used."""

    # Members that become inputs; nested ones as "readings.temp", many as "s{1..200}"
    features: tuple[str, ...] = ()
    text: str = ""  # the one member that is a text: see [text]; with text.width beside features
    target_text: str = ""  # with text: the member that answers it, to be said: see [target]
    label: str = ""  # member to predict; missing: the event shapes the state only; "": forecast
    kind: Kind = ""  # of each event's prediction; "": without a label forecast, or next_symbol
    files: tuple[str, ...] = ()  # event logs, .jsonl, .csv or .parquet (also .gz), in log order
    key_field: str = "key"  # whose history a file's row belongs to; "": the file's; Kafka: its key
    time_field: str | None = None  # event time; unset: the record's timestamp (files: 0)
    time_unit: str = "ms"  # of time_field: ms, s, us or ns since 1970, "iso", a strptime pattern
    time_zone: str = "UTC"  # of times as text that name no zone
    booleans: tuple[str, ...] = ()  # those features that are true or false
    categories: tuple[str, ...] = ()  # those that are texts: one input per value seen in training
    missing: Missing = "error"  # a feature that is null or absent: reject, mean, or last value
    missing_mask: tuple[str, ...] = ()  # features for which it is the training mean
    missing_last: tuple[str, ...] = ()  # features for which it is the key's last value
    since_last: bool = False  # one more input: the time since the key's last event
    standardise_by_key: tuple[str, ...] = ()  # features scaled by their key's own mean so far
    conditions: tuple[str, ...] = ()  # numbers that tell an event's operating condition, by which
    condition_count: int = 0  # the others are scaled, of so many; both or neither
    long_name: str = ""  # long format: member that names the feature whose value an event holds
    long_value: str = ""  # long format: member with the value
    static: str = ""  # table of what is known of each key (CSV, ...), joined into its rows
    null_words: tuple[str, ...] = ()  # cells of CSV files that stand for a missing value
    csv_separator: str = ","  # of CSV files
    csv_decimal: str = "."  # decimal sign of CSV files
    csv_encoding: str = "utf-8"  # of CSV files; a byte order mark is no part of it
    decoder: str = ""  # "package.module:function" that reads a record's value; "": by format
    format: Format = "json"  # of records in Kafka: json, msgpack, packed (float32), avro
    avro_schema: str = ""  # format avro: its JSON text; avro_schema_file = "events.avsc" reads it
    avro_id: int | None = None  # its number in a registry, before every record; unset: none is
    tombstone: Literal["reject", "reset"] = "reject"  # a record with a null value
    # A key silent for longer, by its own event times, starts anew, in training as when served; the
    # worker also counts the stream's time, so that it may forget silent keys. Unset: never.
    reset_after_s: float | None = None
    # A member that ends its key's history where it is neither null, false ("False"), 0 nor "": the
    end_field: str = ""  # event still counts, and the key's next one starts anew
    # classification: labels in output order; transcription: symbols; default: as found
    classes: tuple[str, ...] = ()
    # transcription: what a label that is a text is made of; of a list the entries are symbols
    symbols: Literal["words", "characters"] = "words"
    label_cap: float | None = None  # regression: larger labels count as this much
    max_reject_share: float = 0.01  # of all records; with more rejects the run stops

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _spelt_out(self.features))
        self._check_label()
        self._check_features()
        after_s = self.reset_after_s
        if after_s is not None and not 0.001 <= after_s <= MAX_RESET_AFTER_S:
            raise ValueError(
                f"reset_after_s: expected 0.001 to {MAX_RESET_AFTER_S:g}, got {after_s}"
            )
        for name in ("reset_after_s", "since_last"):
            if getattr(self, name) and self.files and self.time_field is None:
                raise ValueError(f"{name}: expected a time_field: a file's row has no timestamp")
        try:
            self._check_format()
        except SpecError as error:
            raise ValueError(str(error).removeprefix("events.")) from error

    def _check_label(self) -> None:
        if self.label and self.label in (*self.features, self.text):
            raise ValueError(f"label: expected a field that is no feature, got {self.label!r}")
        if self.label and self.kind not in LABELLED:
            raise ValueError(
                "kind: expected 'regression', 'classification' or 'transcription' with label = "
                f"{self.label!r}, got {self.kind!r}"
            )
        if not self.label and self.kind not in ("", "forecast" if self.features else "next_symbol"):
            raise ValueError(f"label: expected a field with kind = {self.kind!r}, got none")
        if self.kind == "regression" and self.classes:
            raise ValueError("classes: expected none for kind = 'regression'")
        if self.kind != "regression" and self.label_cap is not None and self.label:
            raise ValueError(f"label_cap: expected none for kind = {self.kind!r}")
        if self.kind != "transcription" and self.symbols != "words":
            raise ValueError(f"symbols: expected kind = 'transcription' with it, got {self.kind!r}")

    def _check_features(self) -> None:
        self._check_text()
        for name in ("booleans", "categories", "missing_mask", "missing_last",
                     "standardise_by_key", "conditions"):  # fmt: skip
            if strange := [field for field in getattr(self, name) if field not in self.features]:
                raise ValueError(f"{name}: expected names of features, got {strange[0]!r}")
        for one, other in (("booleans", "categories"), ("missing_mask", "missing_last")):
            if both := set(getattr(self, one)) & set(getattr(self, other)):
                raise ValueError(f"{one}: {min(both)!r} is also in {other}")
        self._check_conditions()
        if bool(self.long_name) != bool(self.long_value):
            raise ValueError("long_name: expected long_name and long_value together, or neither")
        if self.long_name and (self.booleans or self.categories):
            raise ValueError("long_name: expected features that are numbers only")
        if self.long_name and self.missing == "error":
            raise ValueError(
                "missing: expected 'last' or 'mask' with long_name: an event holds one of the "
                "features"
            )

    def _check_text(self) -> None:
        if not self.features and not self.text:
            raise ValueError(
                "features: expected names of features, or one text (data.text), got neither"
            )
        if self.text and self.long_name:
            raise ValueError("text: expected no long_name with it")
        if self.target_text and (not self.text or self.label or self.features):
            raise ValueError(
                "target_text: expected data.text with it, and neither a label nor features, got "
                f"{self.target_text!r}"
            )
        if self.target_text and self.target_text == self.text:
            raise ValueError(f"target_text: expected another member than text, got {self.text!r}")
        if self.text in self.features:
            raise ValueError(f"text: expected a member that is no feature too, got {self.text!r}")

    def _check_conditions(self) -> None:
        for name in self.conditions:
            if name in (*self.booleans, *self.categories, *self.standardise_by_key):
                raise ValueError(f"conditions: expected plain numbers, got {name!r}")
        if bool(self.conditions) != (self.condition_count > 1):
            raise ValueError(
                "condition_count: expected 2 or more with conditions, and 0 without, "
                f"got {self.condition_count}"
            )

    def _check_format(self) -> None:
        if self.decoder:
            self.events()  # the hook is imported when it is needed
            return
        long = (self.long_name, self.long_value)
        form = format_of(self.events(), long if self.long_name else self.members)
        if isinstance(form, Packed) and self.text:
            raise ValueError("text: expected none in packed records")
        if isinstance(form, Packed):
            for name in ("booleans", "categories", "missing_mask", "missing_last"):
                if given := getattr(self, name):
                    raise ValueError(f"{name}: expected none in packed records, got {given[0]!r}")
            for name, expected in (("missing", "error"), ("long_name", "")):
                if (got := getattr(self, name)) != expected:
                    raise ValueError(
                        f"{name}: expected {expected!r} with packed records, got {got!r}"
                    )

    @property
    def members(self) -> tuple[str, ...]:
        """The members that become inputs."""
        return (*self.features, *((self.text,) if self.text else ()))

    @property
    def reset_after_ms(self) -> int | None:
        """Silence after which a key starts anew, as the bundle says it."""
        return None if self.reset_after_s is None else round(self.reset_after_s * 1000)

    def events(self) -> EventSpec:
        """Return how records become events."""
        return EventSpec(
            key_field=self.key_field or None,
            time_field=self.time_field,
            time_unit=self.time_unit,
            tombstone=self.tombstone,
            reset_after_ms=self.reset_after_ms,
            time_zone=self.time_zone,
            decoder=self.decoder,
            format=self.format,
            avro_schema=self.avro_schema,
            avro_id=self.avro_id,
            end_field=self.end_field,
        )


@dataclass(frozen=True, slots=True)
class Forecast:
    """Without a label: which later values are forecast, and how events are scored."""

    # Features; default: all numbers that change within a key and are not standardise_by_key.
    fields: tuple[str, ...] = ()
    horizons: tuple[int, ...] = (1,)  # events of the key ahead
    quantiles: tuple[float, ...] = ()  # such as 0.1, 0.5, 0.9; none: the mean alone
    anomaly: bool = True  # score each event by its distance from its forecast
    anomaly_rate: float = 0.001  # share of the validation events above the threshold
    threshold: Literal["quantile", "dynamic"] = "quantile"  # fixed, or after each key's own errors

    def __post_init__(self) -> None:
        try:
            ForecastSpec(self.fields or ("any",), self.horizons, self.quantiles)
        except SpecError as error:
            raise ValueError(str(error).removeprefix("outputs.forecast.")) from error
        if not 0 < self.anomaly_rate < 1:
            raise ValueError(f"anomaly_rate: expected 0 < rate < 1, got {self.anomaly_rate}")
        if self.anomaly and self.horizons[0] != 1:
            raise ValueError("horizons: expected 1 among them, or anomaly = false")


@dataclass(frozen=True, slots=True)
class Labels:
    """A second log that says later what was right: joined by key and time."""

    files: tuple[str, ...] = ()  # event logs of labels; none: the label is in the events
    key_field: str = ""  # default: data.key_field
    time_field: str = ""  # default: data.time_field; in data.time_unit and data.time_zone
    field: str = ""  # member with the label; default: data.label
    csv_separator: str = ""  # of CSV files; default: data.csv_separator
    csv_decimal: str = ""  # likewise: data.csv_decimal
    csv_encoding: str = ""  # likewise: data.csv_encoding
    within_s: float = 0.0  # a label counts for events up to so long before it

    def __post_init__(self) -> None:
        if self.within_s < 0:
            raise ValueError(f"within_s: expected at least 0, got {self.within_s}")


def _spelt_out(names: Iterable[str]) -> tuple[str, ...]:
    """Return names with numbers in place of ranges: "s{1..3}" is s1, s2, s3."""
    found: list[str] = []
    for name in names:
        numbered = _NUMBERED.fullmatch(name)
        if numbered is None:
            found.append(name)
            continue
        before, first, last, behind = numbered.groups()
        if not int(first) <= int(last) < int(first) + MOST_NUMBERED:
            raise ValueError(
                f"features: expected up to {MOST_NUMBERED:,} rising numbers in {name!r}"
            )
        found += [f"{before}{number}{behind}" for number in range(int(first), int(last) + 1)]
    return tuple(found)
