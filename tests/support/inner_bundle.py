"""A real bundle whose events hold a text beside all that the keyed bundle's events hold.

Owns its features and events for it: texts as odd as people's, some none at all. The graph is the
tiny bundle's, which takes the numbers of symbols for numbers. Imported as
`from inner_bundle import make_inner_bundle`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from keyed_bundle import FEATURES, make_keyed_bundle, messy_event
from text_bundle import odd_text

from keyfold.export.bundle import Bundle
from keyfold.export.text import Text

LINE = Text("said.line", "char", ("a", "b", "\0", "日", "😀"), lower=True, width=5, keep="last")
INNER = replace(FEATURES, text=LINE)


def make_inner_bundle(folder: Path, **options: Any) -> Bundle:
    """Write folder/<id> and load it again; options are those of make_keyed_bundle."""
    return make_keyed_bundle(folder, features=INNER, **options)


def inner_event(draw: np.random.Generator, time_ms: int, **members: Any) -> bytes:
    """Return an event of the inner bundle, whose text is a text."""
    return messy_event(draw, time_ms, said={"line": odd_text(draw)}, **members)


def textless_event(draw: np.random.Generator, time_ms: int) -> bytes:
    """Return an event whose text is none."""
    said = [{"line": None}, {"line": 3}, {}, None, "line"][draw.integers(5)]
    return messy_event(draw, time_ms, said=said)
