"""Links: layers with their states, so that one description gives both forms of a network.

Owns how a layer without a state, a fused recurrent layer, a user's cell and a layer that carries a
ring are called alike, and how links make chains and residual branches. A link called without
states runs from cold; called with states it also returns those afterwards. States are flat (B,size)
and all zeros where cold. Built by the families, called by model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import keras

from keyfold.export.own_cell import CellError, OneStep


class Link(Protocol):
    """A part of a network, to be called any number of times with the same weights."""

    def sizes(self) -> tuple[int, ...]:
        """Return the size of every state tensor; after the first call."""
        ...

    def __call__(self, z: Any, states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Return what becomes of z (B,T,D), and the states afterwards (none from cold)."""
        ...


class Plain:
    """A layer without a state."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def sizes(self) -> tuple[int, ...]:
        """Return nothing."""
        return ()

    def __call__(self, z: Any, _states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Apply the layer."""
        return self._layer(z), []


class Recurrent:
    """One of Keras's recurrent layers, with return_sequences and return_state."""

    def __init__(self, layer: Any, tensors: int) -> None:
        self._layer, self._tensors = layer, tensors

    def sizes(self) -> tuple[int, ...]:
        """Return the number of units for each tensor."""
        return (self._layer.units,) * self._tensors

    def __call__(self, z: Any, states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Apply the layer."""
        y, *after = self._layer(z, initial_state=None if states is None else list(states))
        return y, [] if states is None else after


class Cell:
    """A keras.layers.RNN around any cell, with return_sequences and return_state."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the cell's states."""
        specs = OneStep(self._layer).state_specs()
        if any(len(spec.dims) != 1 for spec in specs):
            raise CellError(
                f"model.cell: expected states (rows, numbers), got {[spec.dims for spec in specs]}"
            )
        return tuple(spec.size for spec in specs)

    def __call__(self, z: Any, states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Apply the layer; the states' own beginnings are added to the zeros."""
        if states is None:
            return self._layer(z)[0], []
        specs = OneStep(self._layer).state_specs()
        own = [
            state + spec.initial if spec.initial else state
            for state, spec in zip(states, specs, strict=True)
        ]
        sizes = self._layer.cell.state_size
        structure = [sizes] if isinstance(sizes, int) else sizes
        y, *after = self._layer(z, initial_state=keras.tree.pack_sequence_as(structure, own))
        ends = [
            state - spec.initial if spec.initial else state
            for state, spec in zip(keras.tree.flatten(after), specs, strict=True)
        ]
        return y, ends


class Carrying:
    """A layer of export/stateful.py, with return_state."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the layer's states."""
        return tuple(spec.size for spec in self._layer.state_specs())

    def __call__(self, z: Any, states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Apply the layer."""
        y, *after = self._layer(z, states=None if states is None else list(states))
        return y, [] if states is None else after


class Chain:
    """Links one after the other."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of all states, in order."""
        return tuple(size for link in self._links for size in link.sizes())

    def __call__(self, z: Any, states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Apply the links in order."""
        after: list[Any] = []
        first = 0
        for link in self._links:
            if states is None:
                z, _ = link(z, None)
                continue
            count = len(link.sizes())
            z, mine = link(z, states[first : first + count])
            after += mine
            first += count
        return z, after


class Residual:
    """A link whose input is added to its output (He et al. 2016)."""

    def __init__(self, link: Link, name: str) -> None:
        self._link, self._add = link, keras.layers.Add(name=name)

    def sizes(self) -> tuple[int, ...]:
        """Return the link's sizes."""
        return self._link.sizes()

    def __call__(self, z: Any, states: Sequence[Any] | None, /) -> tuple[Any, list[Any]]:
        """Apply the link and add."""
        y, after = self._link(z, states)
        return self._add([z, y]), after
