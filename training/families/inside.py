"""What reads the text of one event, before any memory of the key: model.encoders.

Owns how an event's columns, numbers and the symbols of its text, become one vector: the symbols are
embedded, each encoder makes a vector of them, and all stand beside the scaled numbers. No part of
it reaches from one event to the next; that is the family's work behind it. Called by model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keyfold.export.settings import SettingsError
from keyfold.export.text_layers import POOLS, Convolved, Pick, Pooled, ReadThrough, Symbols
from keyfold.training.settings_model import Model

MOST_NUMBERS = 1 << 18  # a worker's call of 512 events, one of each key, then takes 512 MiB
EMBEDDING = 32  # numbers that a symbol becomes, unless model.embedding says otherwise


def read_inside(settings: Model, symbols: int, width: int, numbers: Sequence[Any], x: Any) -> Any:
    """Return the vectors (B,T,D) of events x (B,T,F), whose last `width` columns are symbols.

    `symbols`: how many there are. `numbers`: the layers that the columns before them go through.
    """
    plain = x.shape[-1] - width
    text = Pick(plain, width, name="text")(x) if plain else x
    found = _encoded(settings, text, symbols)
    if plain:
        z = Pick(0, plain, name="numbers")(x)
        for layer in numbers:
            z = layer(z)
        found.append(z)
    return found[0] if len(found) == 1 else keras.layers.Concatenate(name="event")(found)


def _encoded(settings: Model, text: Any, symbols: int) -> list[Any]:
    """Return what each encoder makes of a text."""
    z = Symbols(symbols, settings.embedding or EMBEDDING, name="symbols")(text)
    dropout = settings.encoder_dropout
    if dropout:
        z = keras.layers.Dropout(dropout, name="drop_symbols")(z)
    layers = _encoders(settings)
    found = [layer([text, z]) for layer in layers]
    if (most := max(layer.numbers for layer in layers)) > MOST_NUMBERS:
        raise SettingsError(
            f"text.width, model.embedding, model.encoder_units: expected at most {MOST_NUMBERS:,} "
            f"numbers in memory for the text of one event, got {most:,}: lower one of them"
        )
    if dropout:
        found = [
            keras.layers.Dropout(dropout, name=f"drop_text{number}")(one)
            for number, one in enumerate(found)
        ]
    return found


def _encoders(settings: Model) -> list[Any]:
    units, pool = settings.encoder_units, settings.encoder_pool == "max"
    pools = tuple(how for how in POOLS if how in settings.encoders)
    layers: list[Any] = [Pooled(pools, name="pooled")] if pools else []
    for name in settings.encoders:
        if name == "convolution":
            layers.append(Convolved(units, settings.encoder_widths, name="convolved"))
        elif name not in POOLS:
            cell, both = name.removeprefix("bi_"), name.startswith("bi_")
            layers.append(ReadThrough(cell, units, both, pool, name=f"read_{name}"))
    return layers
