"""The recurrent family: a stack of LSTM, GRU, simple recurrent layers or a user's own cells.

Owns the stack and what may stand between its layers: residual branches, layer normalisation (Ba,
Kiros and Hinton 2016), dropout, and attention over the last layer's past hidden states. Called by
model.py, and by frames.py, which puts a front before it.
"""

from __future__ import annotations

from typing import Any

import keras

from keyfold.export.attention import WindowAttention
from keyfold.export.own_cell import OwnCell
from keyfold.training.families.links import Carrying, Cell, Chain, Link, Plain, Recurrent, Residual
from keyfold.training.settings_model import CELLS, Model


def recurrent(settings: Model) -> Chain:
    """Build the stack."""
    links: list[Link] = []
    for number, units in enumerate(settings.units):
        layer = _layer(settings, units, number)
        # "Between" layers: the first one's input is as wide as the features.
        residual = settings.residual and number
        links.append(Residual(layer, f"residual{number}") if residual else layer)
        if settings.norm:
            links.append(Plain(keras.layers.LayerNormalization(name=f"norm{number}")))
        links.append(Plain(keras.layers.Dropout(settings.dropout, name=f"drop{number}")))
    if settings.attention:
        attention = WindowAttention(
            settings.attention, settings.window, return_state=True, name="attention"
        )
        links.append(Carrying(attention))
    return Chain(links)


def _layer(settings: Model, units: int, number: int) -> Link:
    both = {"return_sequences": True, "return_state": True, "name": f"recurrent{number}"}
    if settings.cell not in CELLS:
        return Cell(keras.layers.RNN(OwnCell(settings.cell, units), **both))
    if settings.recurrent_dropout:
        both["recurrent_dropout"] = settings.recurrent_dropout
    if settings.cell == "lstm":
        return Recurrent(keras.layers.LSTM(units, **both), 2)
    if settings.cell == "gru":
        return Recurrent(keras.layers.GRU(units, reset_after=settings.reset_after, **both), 1)
    simple: Any = keras.layers.SimpleRNN(units, activation=settings.activation, **both)
    return Recurrent(simple, 1)
