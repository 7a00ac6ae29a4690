"""Reads a TOML file, the environment and flags into one frozen settings object.

Settings are dataclasses of dataclasses (section -> setting). This module owns the order of
precedence (flag, environment, file, default), the conversion to the declared types, and the errors:
an unknown or ill-typed setting fails at start, by name. Shared by training and the worker, which
own what the settings are and what they mean together.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from keyfold.export.errors import Crash

T = TypeVar("T")


class SettingsError(Crash):
    """A setting is unknown, missing, ill-typed or contradicts another one."""


def read(
    kind: type[T],
    file: Path | None,
    environment: Mapping[str, str],
    flags: Iterable[str] = (),
    prefix: str = "KEYFOLD_",
) -> T:
    """Read settings of type `kind`.

    `environment` holds PREFIX_SECTION__NAME=value, or PREFIX_SECTION__NAME_FILE=path for a secret
    kept in a file; `flags` are "section.name=value". Raises SettingsError by the setting's name.
    """
    values = _from_file(file) if file is not None else {}
    where = str(file) if file is not None else "settings"
    for section, name, value, source in (*_from_environment(environment, prefix), *_split(flags)):
        values.setdefault(section, {})[name] = _Text(value, source)
    return _build(kind, values, where)


class _Text(str):
    """A value that came as text (environment, flag) and is converted to the declared type."""

    source: str

    def __new__(cls, value: str, source: str) -> _Text:
        text = super().__new__(cls, value)
        text.source = source
        return text


def _from_file(file: Path) -> dict[str, dict[str, Any]]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: not readable: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from error
    for section, content in data.items():
        if not isinstance(content, dict):
            raise SettingsError(f"{file}: expected sections only, got the setting {section!r}")
    return data


def _from_environment(
    environment: Mapping[str, str], prefix: str
) -> list[tuple[str, str, str, str]]:
    found = []
    for variable, value in sorted(environment.items()):
        section, separator, name = variable.removeprefix(prefix).lower().partition("__")
        if not variable.startswith(prefix) or not separator:
            continue
        if name.endswith("_file"):
            name, value = name.removesuffix("_file"), _read_secret(variable, value)
        found.append((section, name, value, variable))
    return found


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable}: the file it names is not readable") from error


def _split(flags: Iterable[str]) -> list[tuple[str, str, str, str]]:
    found = []
    for flag in flags:
        path, equals, value = flag.partition("=")
        section, dot, name = path.partition(".")
        if not (equals and dot and name):
            # Without what follows the equals sign: it may be a secret.
            raise SettingsError(f"--set {path}{equals}...: expected section.name=value")
        found.append((section, name, value, f"--set {path}"))
    return found


def _build(kind: type[T], values: Mapping[str, Mapping[str, Any]], where: str) -> T:
    sections = get_type_hints(kind)
    for unknown in values.keys() - sections.keys():
        given = next(iter(values[unknown].values()), None)
        source = given.source if isinstance(given, _Text) else where
        raise SettingsError(
            f"{source}: unknown section [{unknown}]; expected one of {', '.join(sections)}"
        )
    return kind(**{name: _section(s, name, values, where) for name, s in sections.items()})


def _section(kind: type, section: str, values: Mapping[str, Mapping[str, Any]], where: str) -> Any:
    given = values.get(section, {})
    hints = get_type_hints(kind)
    for unknown in given.keys() - hints.keys():
        source = given[unknown].source if isinstance(given[unknown], _Text) else where
        raise SettingsError(
            f"{source}: unknown setting {section}.{unknown}; expected one of {', '.join(hints)}"
        )
    arguments = {}
    for item in fields(kind):
        name = f"{section}.{item.name}"
        if item.name in given:
            arguments[item.name] = _convert(given[item.name], hints[item.name], name, where)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise SettingsError(f"{where}: {name} is required and has no default")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise SettingsError(f"{where}: {section}.{error}") from error


def _convert(value: Any, hint: Any, name: str, where: str) -> Any:
    source = value.source if isinstance(value, _Text) else where
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, get_args(hint), name, where)
    if origin is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise SettingsError(f"{source}: {name}: expected one of {choices}, got {value!r}")
        return str(value) if isinstance(value, str) else value
    if origin is tuple:
        items = _split_list(value) if isinstance(value, _Text) else value
        if not isinstance(items, list):
            raise SettingsError(f"{source}: {name}: expected a list, got {type(value).__name__}")
        item = get_args(hint)[0]
        return tuple(
            _convert(_Text(i.strip(), source) if isinstance(value, _Text) else i, item, name, where)
            for i in items
        )
    return _scalar(value, hint, name, source)


def _split_list(text: str) -> list[Any]:
    """Read a list from text: a,b,c or as in TOML: ["a", "b"]."""
    if text.lstrip().startswith("["):
        try:
            return list(map(str, tomllib.loads(f"items = {text}")["items"]))
        except tomllib.TOMLDecodeError:
            pass  # then the brackets are part of the names
    return text.split(",")


def _first_that_fits(value: Any, hints: tuple[Any, ...], name: str, where: str) -> Any:
    errors = []
    for hint in (h for h in hints if h is not type(None)):
        try:
            return _convert(value, hint, name, where)
        except SettingsError as error:
            errors.append(error)
    raise errors[-1]


def _scalar(value: Any, hint: Any, name: str, source: str) -> Any:
    problem = SettingsError(f"{source}: {name}: expected {hint.__name__}, got {_show(value)}")
    if isinstance(value, _Text):
        if hint is bool:
            if value.lower() not in ("true", "false", "1", "0"):
                raise problem
            return value.lower() in ("true", "1")
        try:
            return str(value) if hint is str else hint(value)
        except ValueError:
            raise problem from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise problem
    return value


def _show(value: Any) -> str:
    # Never the text itself: it may be a secret.
    if isinstance(value, bool | int | float):
        return f"{type(value).__name__} {value!r}"
    return "text" if isinstance(value, str) else type(value).__name__
