"""The transformer family: pre-norm blocks of causal attention over the last `window` events.

Owns the blocks (Vaswani et al. 2017, normalised before each branch as in Xiong et al. 2020). Each
block looks `window` events back at what the block below made of them; its state are those events'
keys and values. Called by model.py.
"""

from __future__ import annotations

import keras

from keyfold.export.attention import CausalAttention
from keyfold.training.families.links import Carrying, Chain, Link, Plain, Residual
from keyfold.training.settings_model import Model

WIDER = 4  # hidden units of a block's second branch, times its width (Vaswani et al. 2017)


def transformer(settings: Model) -> Chain:
    """Build the blocks, all of one width."""
    links: list[Link] = [Plain(keras.layers.Dense(settings.units[0], name="project"))]
    for number, width in enumerate(settings.units):
        attention = CausalAttention(
            settings.heads,
            settings.window,
            settings.kv_heads,
            return_state=True,
            name=f"attention{number}",
        )
        dense = [
            keras.layers.Dense(WIDER * width, activation="relu", name=f"widen{number}"),
            keras.layers.Dense(width, name=f"narrow{number}"),
        ]
        looks = _branch(settings, [Carrying(attention)], f"{number}a")
        thinks = _branch(settings, [Plain(layer) for layer in dense], f"{number}b")
        links += [Residual(looks, f"add{number}a"), Residual(thinks, f"add{number}b")]
    return Chain([*links, Plain(keras.layers.LayerNormalization(name="norm"))])


def _branch(settings: Model, links: list[Link], name: str) -> Chain:
    before = Plain(keras.layers.LayerNormalization(name=f"norm{name}"))
    after = Plain(keras.layers.Dropout(settings.dropout, name=f"drop{name}"))
    return Chain([before, *links, after])
