"""Reads a TOML file, the environment and flags into one frozen settings object.

Settings are dataclasses of dataclasses (section -> setting). This module owns the order of
precedence (flag, environment, file, default), the conversion to the declared types, and the errors:
an unknown or ill-typed setting fails at start, by name. Shared by training and the worker, which
own what the settings are and what they mean together.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from keyfold.export.errors import Crash

T = TypeVar("T")

# Of a URL: what stands before its last @ may hold any character that nobody cared to quote.
LOGIN = re.compile(r"://.*:.*@|[?&](\w*_)?password=", re.DOTALL | re.IGNORECASE)
TRAINING = "KEYFOLD_TRAIN_"  # of keyfold-train: the same shell may hold both programs' variables


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

    `environment` holds PREFIX_SECTION__NAME=value; `flags` are "section.name=value". NAME_FILE=path
    takes any setting from a file, wherever it stands: a field marked as a secret (metadata) can be
    given as no flag but so, nor can a URL with a password. Raises SettingsError by the setting's
    name.
    """
    values: dict[str, dict[str, Any]] = {}
    where = str(file) if file is not None else "settings"
    # The later wins, setting by setting.
    for layer in (
        _from_file(file) if file is not None else {},
        _layer(_from_environment(environment, prefix)),
        _layer(_split(flags)),
    ):
        for section, given in layer.items():
            _refuse_shown_secrets(kind, section, given)
            hint = get_type_hints(kind).get(section)
            read_in = given if hint is None else _files_read(hint, section, given, where)
            values.setdefault(section, {}).update(read_in)
    return _build(kind, values, where)


def read_section(
    kind: type[T], section: str, environment: Mapping[str, str], prefix: str = "KEYFOLD_"
) -> T:
    """Read one section from the environment alone, for a command that was given no file."""
    given = _layer(_from_environment(environment, prefix)).get(section, {})
    values = {section: _files_read(kind, section, given, "settings")}
    return cast(T, _section(kind, section, values, "settings"))


def _layer(found: Iterable[tuple[str, str, str, str]]) -> dict[str, dict[str, Any]]:
    layer: dict[str, dict[str, Any]] = {}
    for section, name, value, source in found:
        layer.setdefault(section, {})[name] = _Text(value, source)
    return layer


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
        others = variable.startswith(TRAINING) and prefix != TRAINING
        if not variable.startswith(prefix) or not separator or others:
            continue
        found.append((section, name, value, variable))
    return found


def _refuse_shown_secrets(kind: type, section: str, given: Mapping[str, Any]) -> None:
    hint = get_type_hints(kind).get(section)
    secret = {i.name for i in fields(hint) if i.metadata.get("secret")} if hint else set()
    for name, value in given.items():
        if not isinstance(value, _Text) or not value.source.startswith("--set"):
            continue
        if name in secret or LOGIN.search(value):
            raise SettingsError(
                f"{value.source}: everybody on this machine can see a flag (ps); give "
                f"{section}.{name}_file, or an environment variable"
            )


def _files_read(kind: type, section: str, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read what stands in files: NAME_FILE gives NAME, unless NAME_FILE is itself a setting."""
    known, found = {item.name for item in fields(kind)}, dict(given)
    for name, value in given.items():
        base = name.removesuffix("_file")
        if name in known or base == name or base not in known:
            continue
        source = value.source if isinstance(value, _Text) else f"{where}: {section}.{name}"
        if base in given:
            raise SettingsError(f"{source}: expected {section}.{base} or this, not both")
        del found[name]
        found[base] = _Text(_read_secret(value, source), source)
    return found


def _read_secret(path: Any, source: str) -> str:
    # Its name is never shown: who mistakes the setting writes the secret itself there.
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, TypeError) as error:
        why = getattr(error, "strerror", None) or "expected a file of UTF-8 text"
        raise SettingsError(f"{source}: the file it names is not readable: {why}") from error
    secret = text.rstrip("\r\n")  # an editor's last line break is no part of it, blanks are
    if not secret.strip():
        raise SettingsError(f"{source}: expected text in the file it names, got an empty one")
    return secret


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
    if isinstance(value, _Text) and value[:1] + value[-1:] == "[]":
        lists = [hint for hint in hints if get_origin(hint) is tuple]
        # A text would fit as well, but in the file this is a list.
        hints = (*lists, *(hint for hint in hints if hint not in lists))
        value = _Text(value[1:-1], value.source) if lists and not _is_toml(value) else value
    for hint in (h for h in hints if h is not type(None)):
        try:
            return _convert(value, hint, name, where)
        except SettingsError as error:
            errors.append(error)
    raise errors[-1]


def _is_toml(text: str) -> bool:
    """Say whether a list is as in TOML; the shell may have taken its quotes."""
    try:
        tomllib.loads(f"items = {text}")
    except tomllib.TOMLDecodeError:
        return False
    return True


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
