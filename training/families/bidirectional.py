"""The bidirectional family: recurrent layers that read the last `window` events both ways.

Owns the stack. The state of each layer is a ring of its inputs. Without look-ahead the answer to an
event is made of that event and those before it; with it, each layer's output describes the event so
many before the newest, and the answers of a stack come as late as all its layers together. Called
by model.py.
"""

from __future__ import annotations

import keras

from keyfold.export.windowed import BidirectionalWindow
from keyfold.training.families.links import Carrying, Chain, Link, Plain
from keyfold.training.settings_model import Model


def bidirectional(settings: Model) -> Chain:
    """Build the stack."""
    links: list[Link] = []
    for number, units in enumerate(settings.units):
        layer = BidirectionalWindow(
            settings.cell,
            units,
            settings.window,
            settings.merge,
            settings.look_ahead,
            return_state=True,
            name=f"bidirectional{number}",
        )
        dropout = keras.layers.Dropout(settings.dropout, name=f"drop{number}")
        links += [Carrying(layer), Plain(dropout)]
    return Chain(links)
