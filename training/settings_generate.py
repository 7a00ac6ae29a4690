"""The settings of section [generate]: how an event is answered by symbols.

Owns their names, defaults and meaning. They change no weight: what a run has learned is the same.
Read through config.py; train.py puts them into the output spec.
"""

from __future__ import annotations

from dataclasses import dataclass

from keyfold.export.errors import SpecError
from keyfold.export.generation import MOST_ANSWERED
from keyfold.export.generation import Generate as Spec
from keyfold.export.text import END_NAME


@dataclass(frozen=True, slots=True)
class Generate:
    """How the symbols of an answer are chosen."""

    most: int = 0  # symbols of an answer, its end included; 0: none, of pairs 2 * model.window
    temperature: float = 0.0  # 0: the likeliest symbol; 1: as likely as the model says
    top_k: int = 0  # only so many of the likeliest symbols are chosen from; 0: all
    until: str = END_NAME  # the symbol that ends an answer

    def __post_init__(self) -> None:
        if self.most < 0:
            raise ValueError(f"most: expected 0 to {MOST_ANSWERED}, got {self.most}")
        try:
            self.spec(0)
        except SpecError as error:
            raise ValueError(str(error).removeprefix("outputs.generate.")) from error

    def spec(self, window: int) -> Spec:
        """Return the bundle's form; `window`: of a model of pairs."""
        most = self.most or min(MOST_ANSWERED, max(1, 2 * window))
        return Spec(most, self.temperature, self.top_k, self.until)
