"""The ranges of a search: which settings are tried, and what values they may take.

Owns the form of the ranges' file and its errors. Every value goes through the settings' own reader,
as `--set` does, so that a range holds nothing that a config could not. Knows no search library.
Called by search.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyfold.export.settings import SettingsError
from keyfold.training.config import Config, read_config

SECTIONS = ("model", "fit")
# What these change is what is judged, or how long it takes, not how good a model is.
NOT_TRIED = ("fit.skip_first", "fit.class_weights", "fit.stretch", "fit.seed", "fit.threads",
             "fit.fused", "fit.save_every_s", "fit.tensorboard")  # fmt: skip
FORMS = "[a, b, ...] or {from = LEAST, to = MOST, log = true}"


@dataclass(frozen=True, slots=True)
class Range:
    """The values that one setting may take: choices, or all between two numbers."""

    name: str  # section.setting
    choices: tuple[str, ...] = ()  # as --set takes them
    least: float = 0.0  # without choices
    most: float = 0.0  # likewise
    log: bool = False  # drawn evenly by logarithm
    whole: bool = False  # whole numbers only

    def text(self, value: float | str) -> str:
        """Return a value as --set takes it."""
        if isinstance(value, str):
            return value
        return str(int(value)) if self.whole else repr(float(value))

    def holds(self, value: Any) -> float | str | None:
        """Return a setting's value as this range names it, None where it has none such."""
        if self.choices:
            text = _text(list(value) if isinstance(value, tuple) else value)
            return text if text in self.choices else None
        number = isinstance(value, int | float) and self.least <= value <= self.most
        return value if number else None

    @property
    def bounds(self) -> tuple[str, ...]:
        """The values that are checked before the search: if these are valid, the others are."""
        return self.choices or (self.text(self.least), self.text(self.most))


def read_ranges(file: Path, config: Path, flags: Iterable[str]) -> tuple[Range, ...]:
    """Read the ranges of a search over a config. Raises SettingsError by the setting's name."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: expected TOML, got {error}") from error
    ranges = []
    for section, settings in content.items():
        if section not in SECTIONS or not isinstance(settings, Mapping):
            raise SettingsError(f"{file}: expected sections [model] and [fit], got {section!r}")
        ranges += [_range(file, f"{section}.{name}", form) for name, form in settings.items()]
    if not ranges:
        raise SettingsError(f"{file}: expected ranges of settings, such as fit.rows, got none")
    given = list(flags)
    for item in ranges:
        for text in item.bounds:
            read_config(config, [*given, f"{item.name}={text}"])
    return tuple(ranges)


def _range(file: Path, name: str, form: Any) -> Range:
    where = f"{file}: {name}"
    if name in NOT_TRIED:
        raise SettingsError(f"{where}: expected a setting that makes a model better: leave it out")
    if isinstance(form, list) and form:
        choices = tuple(map(_text, form))
        if len(set(choices)) < len(choices):
            raise SettingsError(f"{where}: expected distinct values, got one twice")
        return Range(name, choices)
    if not isinstance(form, Mapping) or not {"from", "to"} <= form.keys() <= {"from", "to", "log"}:
        raise SettingsError(f"{where}: expected {FORMS}, got {form!r}")
    least, most, log = form["from"], form["to"], form.get("log", False)
    numbers = [item for item in (least, most) if type(item) in (int, float)]
    if len(numbers) < 2 or not least < most or not isinstance(log, bool) or (log and least <= 0):
        raise SettingsError(f"{where}: expected {FORMS}, with from < to, got {form!r}")
    whole = isinstance(least, int) and isinstance(most, int)
    return Range(name, (), least, most, log, whole)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return repr(value) if isinstance(value, float) else str(value)


def with_values(config: Path, flags: Iterable[str], values: Mapping[str, str]) -> Config:
    """Return the config with values as --set takes them. Raises SettingsError: a contradiction."""
    return read_config(config, [*flags, *(f"{name}={text}" for name, text in values.items())])
