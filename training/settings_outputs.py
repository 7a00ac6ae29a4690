"""The settings of section [outputs]: what of the model's answers a prediction holds.

Owns their names, defaults and meaning. They change no weight: what a run has learned is the same.
Read through config.py; train.py puts them into the output spec.
"""

from __future__ import annotations

from dataclasses import dataclass

from keyfold.export.outputs import Answered, Read


@dataclass(frozen=True, slots=True)
class Outputs:
    """What predictions hold."""

    top: int = 0  # classification, next symbols: the largest probabilities alone; 0: all of them
    likelihood: bool = False  # next symbols: score each text by how unlikely its symbols are
    anomaly_rate: float = 0.001  # likelihood: share of the validation events above the threshold

    answers: Answered = "event"  # each event is answered, or each session where it ends, once
    read: Read = "last"  # texts: a prediction at a text's end, or at every symbol of it

    def __post_init__(self) -> None:
        if self.top < 0:
            raise ValueError(f"top: expected at least 0, got {self.top}")
        if not 0 < self.anomaly_rate < 1:
            raise ValueError(f"anomaly_rate: expected 0 < rate < 1, got {self.anomaly_rate}")
