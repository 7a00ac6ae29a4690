"""The seq2seq family: an encoder over source symbols, a decoder that attends to what it kept.

Owns how settings become the model of pairs that export/pairing.py describes and takes apart. It
carries no state from one window of training to the next: a window holds whole pairs. Called by
model.py.
"""

from __future__ import annotations

from typing import Any

import keras

from keyfold.export.layers import Tokens
from keyfold.export.pairing import (
    ASKS,
    ATTENDS,
    CHANCES,
    ENCODER,
    READOUT,
    SAID,
    SOURCE,
    TOLD,
    Attend,
    LastRead,
    OneSide,
)
from keyfold.training.settings_model import Model

CELLS = {"lstm": (keras.layers.LSTM, 2), "gru": (keras.layers.GRU, 1)}  # and their state tensors


def pairs(settings: Model, symbols: tuple[int, int], width: int) -> Any:
    """Build the model x (B,T,2) -> y (B,T,O).

    `symbols`: how many the source has and the answer; `width`: of an embedding.
    """
    x = keras.Input((None, 2), name="x")
    e = _embedded(SOURCE, symbols[0], width)(OneSide(0, name="source")(x))
    for number, units in enumerate(settings.units):
        e = _dropped(settings, f"{ENCODER}_drop{number}", e)
        e = _recurrent(settings, f"{ENCODER}{number}", units)(e)[0]
    units, tensors = settings.units[-1], CELLS[settings.cell][1]
    first = [LastRead(name="last_read")([e, x])] * tensors
    said = _embedded(SAID, symbols[1], width)(OneSide(1, name="said")(x))
    said = _dropped(settings, "said_drop", said)
    asks = _recurrent(settings, ASKS, units)(said, initial_state=first)[0]
    context = Attend(settings.attention, settings.window, name=ATTENDS)([asks, e, x])
    both = keras.layers.Concatenate(name="asked")([asks, context])
    both = _dropped(settings, "asked_drop", both)
    told = _recurrent(settings, TOLD, units)(both, initial_state=first)[0]
    both = keras.layers.Concatenate(name="joined")([told, context])
    z = keras.layers.Dense(settings.dense or units, "tanh", name=READOUT)(both)
    z = _dropped(settings, "readout_drop", z)
    y = keras.layers.Dense(symbols[1], "softmax", name=CHANCES)(z)
    return keras.Model(x, y, name="keyfold")


def _embedded(name: str, count: int, width: int) -> Any:
    return Tokens(count, width, name=name)


def _dropped(settings: Model, name: str, z: Any) -> Any:
    return keras.layers.Dropout(settings.dropout, name=name)(z)


def _recurrent(settings: Model, name: str, units: int) -> Any:
    kind, _ = CELLS[settings.cell]
    return kind(units, return_sequences=True, return_state=True, name=name)
