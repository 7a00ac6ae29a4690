"""In which order does somebody's graph have rows, steps and numbers? Found by running it.

Owns the search: every order that the declared sizes allow is tried with odd numbers of rows and
steps, and counts only if shapes come out as they must and no row changes another one. It knows
ONNX Runtime and the graph's names, not bundles; whether the dressed graph is right is proven by
proof.py. Called by cli.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.wrap.adapt import Layout
from keyfold.export.wrap.own_graph import (
    FLOATS,
    WHOLE,
    Names,
    WrapError,
    dims_of,
    element,
    freed,
    inputs_of,
    kept_dtype,
)
from keyfold.export.wrap.running import quiet_session, said, why_fixed

X_ORDERS = {3: ("BTF", "TBF"), 2: ("BF",)}
Y_ORDERS = ("BTO", "TBO", "BO", "BT", "TB", "B")
ODD_SIZES = (7, 11, 13, 17, 19, 23, 29, 31)  # of rows and steps: mistaken for nothing else

Arrays = dict[str, NDArray[Any]]


class SizesError(WrapError):
    """A graph does not run in sizes that its exporter did not see."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known before the graph runs."""

    columns: tuple[str, ...]  # names of the model's F columns
    outputs: tuple[str, ...]  # names of the O outputs
    order: str = ""  # of x, as told: "BTF", "TBF" or "BF"; "": to be found


@dataclass(frozen=True, slots=True)
class Found:
    """A graph's layout and what follows from it."""

    layout: Layout  # orders of axes
    dims: tuple[tuple[int, ...], ...]  # of each state, without its rows
    long: bool  # several steps in one call give y for each of them


def check_names(model: Any, names: Names, sizes: Sizes) -> None:
    """Raise WrapError where the graph lacks a name, has one too many, or elements of another kind.

    The message lists what there is.
    """
    inputs = inputs_of(model)
    outputs = {value.name: value for value in model.graph.output}
    before, after = [a for a, _ in names.states], [b for _, b in names.states]
    wanted_in = [names.x, *before, *([names.lengths] if names.lengths else [])]
    for what, wanted, there in (
        ("input", wanted_in, inputs), ("output", [names.y, *after], outputs)
    ):  # fmt: skip
        for name in wanted:
            if name not in there:
                raise WrapError(
                    f"graph: expected {what} {name!r}, got {', '.join(there) or 'none'}"
                )
        if len(set(wanted)) != len(wanted):
            raise WrapError(f"graph: expected every {what} to be named once, got {wanted}")
    extra = [name for name in inputs if name not in wanted_in]
    if extra:
        raise WrapError(
            f"graph: input {extra[0]!r}: expected x, lengths or a state, got none of them; "
            "name it in --states IN:OUT, or export the model without it"
        )
    for name in before:
        kept_dtype(inputs[name])
    _check_kinds(inputs, outputs, names, sizes)


def _check_kinds(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], names: Names, sizes: Sizes
) -> None:
    x, y = inputs[names.x], outputs[names.y]
    for value, what, kinds in (
        (x, "x", FLOATS),
        (y, "y", FLOATS),
        *([(inputs[names.lengths], "lengths", WHOLE)] if names.lengths else []),
    ):
        if element(value) not in kinds:
            raise WrapError(
                f"graph: {what} {value.name!r}: expected elements {', '.join(kinds.values())}, got "
                f"element type {element(value)} of ONNX; cast it inside the model"
            )
    dims = dims_of(x)
    if len(dims) not in X_ORDERS:
        raise WrapError(
            f"graph: x {x.name!r}: expected 2 or 3 dimensions (rows, steps, columns), got {dims}"
        )
    width = dims[-1]
    if isinstance(width, int) and width != len(sizes.columns):
        raise WrapError(
            f"graph: x {x.name!r}: expected {len(sizes.columns)} columns "
            f"({', '.join(sizes.columns)}), got {width}"
        )


def find_layout(model: Any, names: Names, sizes: Sizes) -> Found:
    """Find the graph's layout. Raises WrapError: what was tried, what it said."""
    probe = _Probe(model, names, sizes)
    first_error: WrapError | None = None
    for orders, axes in probe.candidates():
        try:
            return probe.attempt(orders, axes)
        except WrapError as error:
            first_error = first_error or error
    hint = probe.why_fixed() if isinstance(first_error, SizesError) else ""
    raise WrapError(f"graph: {first_error}{hint}")


class _Probe:
    """A graph that is run to see what it makes of its inputs."""

    def __init__(self, model: Any, names: Names, sizes: Sizes) -> None:
        self._names, self._sizes = names, sizes
        inputs = inputs_of(model)
        self._x, self._states = inputs[names.x], [inputs[before] for before, _ in names.states]
        self._lengths = inputs[names.lengths] if names.lengths else None
        self._outputs = [names.y, *(after for _, after in names.states)]
        self._session = quiet_session(freed(model, names).SerializeToString())
        declared = {size for value in (self._x, *self._states) for size in dims_of(value)}
        taken = {*declared, len(sizes.columns), len(sizes.outputs)}
        self._rows, self._steps = [size for size in ODD_SIZES if size not in taken][:2]
        self._draw = np.random.default_rng(0)

    def candidates(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield orders of x, and with each one the axis of every state that may be its rows."""
        found = X_ORDERS[len(dims_of(self._x))]
        orders = [order for order in found if self._sizes.order in ("", order)]
        if not orders:
            raise WrapError(
                f"--layout: expected one of {', '.join(found)} for x {self._x.name!r} "
                f"{dims_of(self._x)}, got {self._sizes.order}"
            )
        # States that look alike are alike: c0 beside h0.
        alike = list(dict.fromkeys(tuple(dims_of(state)) for state in self._states))
        for order in orders:
            for axes in product(*(_row_axes(dims) for dims in alike)):
                axis = dict(zip(alike, axes, strict=True))
                yield order, tuple(axis[tuple(dims_of(state))] for state in self._states)

    def attempt(self, order: str, axes: tuple[int, ...]) -> Found:
        """Run the graph in one layout, one step and then several. Raises WrapError."""
        dims = tuple(
            _other_dims(state, axis) for state, axis in zip(self._states, axes, strict=True)
        )
        layout = Layout(order, "", axes)
        one = self._y_order(layout, dims, 1)
        found = Found(replace(layout, y=one), dims, long=False)
        if order == "BF":
            return found
        try:
            several = self._y_order(layout, dims, self._steps)
        except WrapError:
            return found
        if "T" not in several:
            return found
        return Found(replace(layout, y=several), dims, long=True)

    def _y_order(self, layout: Layout, dims: tuple[tuple[int, ...], ...], steps: int) -> str:
        feed = self._feed(layout, dims, steps)
        y, *after = self._run(feed)
        for state, value in zip(self._states, after, strict=True):
            if value.shape != feed[state.name].shape:
                kind = WrapError if self._rows in value.shape else SizesError
                raise kind(
                    f"state {state.name!r}: expected the same shape behind the step, "
                    f"{feed[state.name].shape}, got {value.shape}; is it paired rightly?"
                )
        count = len(self._sizes.outputs)
        sizes = {"B": self._rows, "T": steps, "O": count}
        orders = [
            order
            for order in Y_ORDERS
            if tuple(sizes[letter] for letter in order) == y.shape and ("O" in order or count == 1)
        ]
        if not orders:
            kind = WrapError if self._rows in y.shape else SizesError
            raise kind(
                f"y {self._names.y!r}: expected {count} numbers "
                f"({', '.join(self._sizes.outputs)}) for each of {self._rows} rows x {steps} "
                f"steps, got shape {y.shape}"
            )
        rows = [orders[0].index("B"), *layout.rows]
        self._check_rows(layout, feed, [y, *after], rows)
        return orders[0]

    def _check_rows(
        self, layout: Layout, feed: Arrays, before: Sequence[NDArray[Any]], rows: Sequence[int]
    ) -> None:
        """See that the graph repeats itself, and that another row 2 changes no other row."""
        again = zip(before, self._run(feed), strict=True)
        if not all(np.array_equal(one, two, equal_nan=True) for one, two in again):
            raise WrapError(
                "expected the same outputs when it runs twice, got others; export it in evaluation "
                "mode (model.eval(): dropout off)"
            )
        other = dict(feed)
        for name, axis in (
            (self._x.name, layout.x.index("B")),
            *((s.name, a) for s, a in zip(self._states, layout.rows, strict=True)),
        ):
            other[name] = np.moveaxis(feed[name].copy(), axis, 0)
            other[name][2] = other[name][3]
            other[name] = np.moveaxis(other[name], 0, axis)
        for name, axis, one, two in zip(self._outputs, rows, before, self._run(other), strict=True):
            one, two = (np.delete(np.moveaxis(value, axis, 0), 2, axis=0) for value in (one, two))
            if not np.allclose(one, two, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise WrapError(
                    f"output {name!r}: expected each row to depend on itself only, got another "
                    "one changed with it; rows are keys, and must not meet"
                )

    def _feed(self, layout: Layout, dims: tuple[tuple[int, ...], ...], steps: int) -> Arrays:
        sizes = {"B": self._rows, "T": steps, "F": len(self._sizes.columns)}
        feed = {self._x.name: self._numbers(self._x, [sizes[letter] for letter in layout.x])}
        if self._lengths is not None:
            kind = WHOLE[element(self._lengths)]
            feed[self._lengths.name] = np.full(self._rows, steps, kind)
        for state, rest, axis in zip(self._states, dims, layout.rows, strict=True):
            feed[state.name] = self._numbers(state, [*rest[:axis], self._rows, *rest[axis:]])
        return feed

    def _numbers(self, value: Any, shape: Sequence[int]) -> NDArray[Any]:
        if element(value) in WHOLE:  # numbers of a table, or a counter
            return self._draw.integers(0, 2, shape).astype(WHOLE[element(value)])
        return self._draw.normal(0, 0.5, shape).astype(FLOATS[element(value)])

    def _run(self, feed: Arrays) -> list[NDArray[Any]]:
        try:
            return list(self._session.run(self._outputs, feed))
        except Exception as error:  # ONNX Runtime's own exception classes have no common root
            shape = feed[self._x.name].shape
            raise SizesError(f"expected it to run with x {shape}, got: {said(error)}") from error

    def why_fixed(self) -> str:
        """Return a hint where the graph does run, but in sizes of the exporter's."""
        lengths = [self._lengths] if self._lengths is not None else []
        return why_fixed(self._session, self._x, [*self._states, *lengths])


def _row_axes(dims: tuple[int | str, ...]) -> list[int]:
    """Return the axes of a state that may count rows, the likeliest first."""
    free = [axis for axis, size in enumerate(dims) if not isinstance(size, int)]
    if len(free) > 1:
        raise WrapError(
            f"graph: a state of shape {list(dims)}: expected one free dimension, the rows, got "
            f"{len(free)}; fix the others in the export"
        )
    if free:
        return free
    # All fixed, at the sizes of the exporter's example. PyTorch has (layers, rows, units).
    return [1, 0, 2][: len(dims)] if len(dims) >= 3 else list(range(len(dims)))


def _other_dims(state: Any, axis: int) -> tuple[int, ...]:
    dims = dims_of(state)
    return tuple(int(size) for at, size in enumerate(dims) if at != axis)
