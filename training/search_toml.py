"""The settings that a search found best, as a config of their own.

Owns the writing of TOML from what a config's file holds and what was found. Called by search.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keyfold.training.config import Config
from keyfold.training.init.lines import quoted

OWNER_ONLY = 0o600


def write_best(
    config: tuple[Path, Config], names: Iterable[str], head: Iterable[str], out: Path
) -> None:
    """Write a config's file again, with the settings called `names` as the config has them.

    `config`: the file and what is best of it; `head`: lines of comment. What came from the
    environment stays there.
    """
    file, best = config
    content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    for name in names:
        section, _, setting = name.partition(".")
        content.setdefault(section, {})[setting] = getattr(getattr(best, section), setting)
    lines = [f"# {line}" for line in head]
    for section, settings in content.items():
        lines += ["", f"[{section}]"]
        lines += [f"{_name(name)} = {_value(value)}" for name, value in settings.items()]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if "security" in content:
        out.chmod(OWNER_ONLY)  # it may hold a password


def _name(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_name(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
