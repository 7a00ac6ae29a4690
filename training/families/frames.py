"""The frames family: convolutions over the columns of one event, then the recurrent stack.

Owns the front: for events that are frames, whose columns are consecutive samples or frequencies;
of raw audio the log mel powers, if asked for, in place of learned convolutions. Nothing of it
reaches from one event to the next; that is the memory's work. Called by model.py.
"""

from __future__ import annotations

from typing import Any

import keras

from keyfold.export.layers import Unfold
from keyfold.export.log_mel import LogMel
from keyfold.export.settings import SettingsError
from keyfold.training.families.links import Chain, Link, Plain
from keyfold.training.families.recurrent import recurrent
from keyfold.training.settings_model import Model


def frames(settings: Model, columns: int) -> Chain:
    """Build the front for events of so many columns, and the stack behind it."""
    links: list[Link] = []
    places = columns
    for number, filters in enumerate(settings.filters):
        if places < settings.kernel:
            raise SettingsError(
                f"model.kernel: expected at most {places}, the columns that are left before "
                f"convolution {number + 1} of {len(settings.filters)}, got {settings.kernel}"
            )
        places = (places - settings.kernel) // settings.stride + 1
        links += [Plain(layer) for layer in _front(settings, number, filters)]
    flat = keras.layers.Reshape((-1, places * settings.filters[-1]), name="flat")
    return Chain([*links, Plain(flat), recurrent(settings)])


def _front(settings: Model, number: int, filters: int) -> list[Any]:
    if settings.front == "log_mel":
        size, hop = settings.kernel, settings.stride
        return [LogMel(settings.sample_rate, size, hop, filters, name="log_mel")]
    return [
        Unfold(settings.kernel, settings.stride, name=f"unfold{number}"),
        keras.layers.Dense(filters, activation="relu", name=f"filters{number}"),
    ]
