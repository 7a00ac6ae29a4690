"""The optimizer and its learning rate over the passes.

Owns what `[fit] optimizer` and `schedule` mean. The schedule is a pure function of how far training
has come; the optimizers are Keras's. Called by fit.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import Any

import keras

from keyfold.training.settings_fit import Fit


def make_optimizer(settings: Fit, weights: Seq[Any]) -> Any:
    """Return the optimizer, with its variables made for `weights` (Keras variables)."""
    rate, decay = settings.learning_rate, settings.weight_decay
    made: Any
    if settings.optimizer == "adam":
        made = keras.optimizers.Adam(rate)
    elif settings.optimizer == "adamw":  # Loshchilov and Hutter 2019, arXiv 1711.05101
        made = keras.optimizers.AdamW(rate, weight_decay=decay)
    elif settings.optimizer == "sgd":
        made = keras.optimizers.SGD(rate, momentum=settings.momentum, weight_decay=decay or None)
    else:
        made = keras.optimizers.RMSprop(
            rate, momentum=settings.momentum, weight_decay=decay or None
        )
    # Biases and the scales of a norm are no directions to forget.
    made.exclude_from_weight_decay([weight for weight in weights if len(weight.shape) < 2])
    made.build(weights)
    return made


def way(settings: Fit, passes: float, seconds: float) -> float:
    """Return how many passes are gone as the schedule counts them, after `seconds` of training.

    Where minutes are limited, a cosine's last pass is the one that they end in.
    """
    if not settings.minutes or settings.schedule != "cosine":
        return passes
    spent = min(seconds / (60 * settings.minutes), 1.0)
    return max(passes, spent * settings.passes)


def learning_rate(settings: Fit, gone: float, drops: int = 0) -> float:
    """Return the learning rate when `gone` passes are done, parts of one included.

    `drops`: how often a plateau of the validation loss has ended in a smaller learning rate.
    """
    if gone < settings.warm_up:
        return settings.learning_rate * gone / settings.warm_up
    return settings.learning_rate * max(_share(settings, gone, drops), settings.lowest)


def _share(settings: Fit, gone: float, drops: int) -> float:
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":  # Loshchilov and Hutter 2017, arXiv 1608.03983
        way = (gone - settings.warm_up) / (settings.passes - settings.warm_up)
        return settings.lowest + (1 - settings.lowest) * 0.5 * (1 + math.cos(math.pi * way))
    # A pass belongs to the step in which it began.
    steps = drops if settings.schedule == "plateau" else math.ceil(gone / settings.decay_after) - 1
    return float(settings.decay ** max(0, steps))
