"""The settings of the training loop: `[fit]`.

Owns every name, default and meaning there, and refuses contradictions by name. It knows nothing of
Keras. Read through config.py; used by fit.py, optimizer.py, losses.py and search.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

BALANCED = "balanced"
WIDE = 128  # units from which oneDNN is worth its other last digits, and `fused` no faster


@dataclass(frozen=True, slots=True)
class Fit:
    """The training loop."""

    seed: int = 0  # of weights, order, dropout and noise
    rows: int = 16  # sequences trained side by side (B)
    window: int = 64  # steps that gradients flow back through (T); the state is carried on
    passes: int = 100  # most passes over the training sequences
    # Most minutes of training, a resumed run's earlier ones included; 0: as many as the passes
    # take. A cosine then ends with the minutes. The weights depend on how fast the machine is.
    minutes: float = 0.0
    stretch: int = 0  # longer sequences are cut into stretches of so many events; 0: never
    patience: int = 10  # passes without a better validation loss before stopping
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 3e-3  # the highest of the schedule
    momentum: float = 0.0  # sgd, rmsprop: share of the last change that is made again
    weight_decay: float = 0.0  # adamw, sgd, rmsprop: pull of matrices towards 0, by learning rate
    schedule: Literal["constant", "cosine", "step", "plateau"] = "constant"  # after warm_up
    warm_up: float = 0.0  # passes in which the learning rate grows from nothing; parts are allowed
    decay: float = 0.3  # step, plateau: what the learning rate is multiplied by
    decay_after: int = 10  # step: passes between two; plateau: passes without a better validation
    lowest: float = 0.0  # cosine (at the last of `passes`), step, plateau: least share of it left
    clip_norm: float = 1.0  # largest norm of all gradients together
    class_weights: str | tuple[str, ...] = ()  # "balanced", or ["label=2.0", ...]; others weigh 1
    skip_first: int = 0  # events at a sequence's start that do not count in any loss
    random_start: float = 0.0  # drop up to this share of a sequence, at its start, anew each pass
    average: float = 0.0  # decay of a moving average of the weights, which is what is kept; 0: off
    threads: int = 2  # of TensorFlow
    fused: bool = False  # LSTM layers below 128 units in one operation: faster, other last digits
    save_every_s: float = 300.0  # within a pass, for --resume; at the end of a pass in any case
    tensorboard: bool = False  # write logs for TensorBoard into the run's folder

    def __post_init__(self) -> None:
        for name in ("rows", "window", "passes", "patience", "decay_after", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("average", "random_start", "momentum", "lowest"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "warm_up", "save_every_s", "minutes"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm: expected above 0, got {self.clip_norm}")
        self._check_optimizer()
        self._check_schedule()
        _ = self.weights_of_labels  # raises

    def _check_optimizer(self) -> None:
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(
                f"momentum: expected 0 with optimizer = {self.optimizer!r}, got {self.momentum}"
            )
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError(
                f"weight_decay: expected 0 with optimizer = 'adam', got {self.weight_decay}; "
                "'adamw' has one"
            )

    def _check_schedule(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay: expected 0 < decay < 1, got {self.decay}")
        if self.warm_up >= self.passes and self.warm_up:
            raise ValueError(
                f"warm_up: expected fewer passes than passes = {self.passes}, got {self.warm_up}"
            )
        if self.schedule == "plateau" and self.decay_after >= self.patience:
            raise ValueError(
                f"decay_after: expected fewer passes than patience = {self.patience} with "
                f"schedule = 'plateau', got {self.decay_after}: training would end before"
            )
        if self.schedule == "constant" and self.lowest:
            raise ValueError(f"lowest: expected 0 with schedule = 'constant', got {self.lowest}")
        if self.schedule in ("step", "plateau"):
            return
        for item in fields(self):
            if item.name in ("decay", "decay_after") and getattr(self, item.name) != item.default:
                raise ValueError(
                    f"{item.name}: expected schedule = 'step' or 'plateau' with it, got "
                    f"{self.schedule!r}"
                )

    @property
    def is_balanced(self) -> bool:
        """Whether every label is to weigh the same in training, however many events it has."""
        return self.class_weights in (BALANCED, (BALANCED,))

    @property
    def weights_of_labels(self) -> Mapping[str, float]:
        """The weights by label's name, of those that were given one."""
        given = self.class_weights
        if self.is_balanced:
            return {}
        weights: dict[str, float] = {}
        for item in given.split(",") if isinstance(given, str) else given:
            label, equals, number = item.rpartition("=")
            try:
                weight = float(number)
            except ValueError:
                weight = -1.0
            if not equals or not 0 <= weight < float("inf") or label in weights:
                raise ValueError(
                    "class_weights: expected 'balanced' or one label=NUMBER for a label, such as "
                    f"'fault=5', got {item!r}"
                )
            weights[label] = weight
        return weights
