"""How `keyfold-train init` writes TOML: texts, lists and comments, wrapped to the width.

Owns the form of lines; knows nothing of what they say. Called by toml_text.py and search_toml.py.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable

WIDTH = 79


def quoted(text: str) -> str:
    """Return text as TOML writes it."""
    # JSON's escapes are TOML's; only DEL has to be escaped there and not here.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def comment(text: str) -> list[str]:
    """Return a text as lines of comment."""
    # A path or a name that is cut in two can be copied by nobody.
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)


def listed(name: str, items: Iterable[str]) -> list[str]:
    """Return a list of texts, on several lines where it is long."""
    words = [quoted(item) for item in items]
    one = f"{name} = [{', '.join(words)}]"
    if len(one) <= WIDTH:
        return [one]
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 2 > WIDTH - 2:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word},"
    return [f"{name} = [", *(f"  {line}" for line in lines), "]"]
