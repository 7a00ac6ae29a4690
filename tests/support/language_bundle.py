"""A real bundle that predicts the next symbol of texts, scores them, or writes the largest alone.

Owns that choice of outputs for the text bundle. Imported as
`from language_bundle import make_language_bundle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from text_bundle import make_text_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.events import OutputSpec
from keyfold.export.outputs import Likelihood
from keyfold.export.text import Text

TEXT = Text("line", "byte", max_symbols=3000)
SCORED = Likelihood(5.58, 0.3)  # an untrained model of 258 symbols: log(258) = 5.55


def make_language_bundle(
    folder: Path, likelihood: Likelihood | None = SCORED, *, top: int = 0, **more: Any
) -> Bundle:
    """Write folder/<id> and load it again; `more` as make_text_bundle takes it."""
    outputs = OutputSpec("classification", TEXT.names, top=top, likelihood=likelihood)
    return make_text_bundle(folder, TEXT, outputs=outputs, **more)
