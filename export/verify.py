"""Is the step graph the model? Parity with Keras, and with itself however events are grouped.

Owns the checks that a bundle must pass before it is written, and the golden sequences it then
carries. The reference is the Keras model over whole sequences; the graph is run by ONNX Runtime as
the worker runs it. Inputs are drawn from the features' learned means and deviations, so that a
bundle holds no record of anybody. Called by cli.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.bundle import TOLERANCE, Bundle, Golden, StateSpec
from keyfold.export.errors import BundleError

STEPS = 1_200  # carried in each comparison
ROWS = 6
GOLDEN_LENGTHS = (48, 1, 17, 33)

Floats = NDArray[np.float32]
# x (B,T,F), lengths (B,), states -> y (B,T,O), states
Step = Callable[[Floats, NDArray[np.int32], Mapping[str, Floats]], tuple[Floats, dict[str, Floats]]]


class ParityError(BundleError):
    """The graph does not compute what the model computes, or not always the same."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """One way of cutting the same events into calls."""

    name: str  # for messages
    rows: int  # B of a call
    steps: tuple[int, ...]  # T of the calls, over and over
    padding: int = 0  # NaN steps beyond every row's length


GROUPINGS = (
    Grouping("one call", ROWS, (STEPS,)),
    Grouping("B=1, T=1", 1, (1,)),
    Grouping("B=2, T=1", 2, (1,)),
    Grouping("B=1, T=64", 1, (64,)),
    Grouping("B=3, T=1, 7, 50", 3, (1, 7, 50)),
    Grouping(f"B={ROWS}, T=31, 2, NaN padding of 9", ROWS, (31, 2), 9),
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What was checked and found."""

    min_rows: int  # smallest B from which on results do not depend on B
    largest_difference: float  # to Keras, over all groupings
    allowed: float  # TOLERANCE times the scale of the outputs
    steps: int  # carried in each grouping
    identical: bool  # all groupings gave the same outputs and states, bit for bit
    golden: Golden  # for the bundle


@dataclass(frozen=True, slots=True)
class Scaling:
    """Where a feature's values lie."""

    mean: tuple[float, ...]  # per feature
    deviation: tuple[float, ...]  # per feature


def verify(
    graph: bytes,
    states: tuple[StateSpec, ...],
    reference: Callable[[Floats], Floats],
    scaling: Scaling,
    seed: int = 0,
) -> Proof:
    """Compare a step graph with `reference`, x (B,T,F) -> y (B,T,O), from initial states.

    Raises ParityError: what, in which grouping, expected, got.
    """
    step = _step(_session(graph), states)
    draw = np.random.default_rng(seed)
    x = _draw_inputs(draw, scaling, ROWS, STEPS)
    expected = reference(x)
    allowed = TOLERANCE * max(1.0, float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))
    min_rows = _smallest_rows(step, states, x)
    whole: tuple[Floats, dict[str, Floats]] | None = None
    worst, identical = 0.0, True
    for grouping in GROUPINGS:
        y, after = _run(step, states, x, grouping, min_rows)
        difference = float(np.abs(y - expected).max())
        if not difference <= allowed:  # also NaN
            raise ParityError(
                f"step graph, {grouping.name}, {STEPS} carried steps: expected outputs within "
                f"{allowed:.3g} of Keras, got a difference of {difference:.3g}"
            )
        worst = max(worst, difference)
        whole = whole or (y, after)
        identical = identical and _same(whole, (y, after))
    examples = _draw_inputs(draw, scaling, len(GOLDEN_LENGTHS), max(GOLDEN_LENGTHS))
    return Proof(min_rows, worst, allowed, STEPS, identical, _golden(step, states, examples))


def _same(a: tuple[Floats, dict[str, Floats]], b: tuple[Floats, dict[str, Floats]]) -> bool:
    return np.array_equal(a[0], b[0]) and all(np.array_equal(a[1][n], b[1][n]) for n in a[1])


def _smallest_rows(step: Step, states: tuple[StateSpec, ...], x: Floats) -> int:
    """Return 1, or 2 where one row alone is computed by another kernel with other rounding."""
    one, two = (_run(step, states, x[:2, :64], Grouping("", rows, (1,)), 1)[0] for rows in (1, 2))
    return 1 if np.array_equal(one, two) else 2


def _run(
    step: Step, states: tuple[StateSpec, ...], x: Floats, grouping: Grouping, min_rows: int
) -> tuple[Floats, dict[str, Floats]]:
    """Run all rows of x (B,T,F) grouped in this way; return y and the states at the end."""
    ys, afters = [], []
    for first in range(0, len(x), grouping.rows):
        rows = x[first : first + grouping.rows]
        real = len(rows)
        if real < min_rows:  # as the worker pads
            rows = np.concatenate([rows, rows[-1:]])
        y, after = _run_rows(step, _initial(states, len(rows)), rows, grouping)
        ys.append(y[:real])
        afters.append({name: value[:real] for name, value in after.items()})
    joined = {name: np.concatenate([after[name] for after in afters]) for name in afters[0]}
    return np.concatenate(ys), joined


def _run_rows(
    step: Step, carried: dict[str, Floats], x: Floats, grouping: Grouping
) -> tuple[Floats, dict[str, Floats]]:
    ys: list[Floats] = []
    first = 0
    for wanted in (t for steps in repeat(grouping.steps) for t in steps):
        part = x[:, first : first + wanted]
        steps = part.shape[1]
        if not steps:
            return np.concatenate(ys, axis=1), carried
        padding = np.full((len(x), grouping.padding, x.shape[2]), np.nan, np.float32)
        lengths = np.full(len(x), steps, np.int32)
        y, carried = step(np.concatenate([part, padding], axis=1), lengths, carried)
        ys.append(y[:, :steps])
        first += steps
    raise AssertionError("repeat() does not end")


def _initial(states: tuple[StateSpec, ...], rows: int) -> dict[str, Floats]:
    return {s.input: np.full((rows, *s.dims), s.initial, np.float32) for s in states}


def _draw_inputs(draw: np.random.Generator, scaling: Scaling, rows: int, steps: int) -> Floats:
    """Return features (B,T,F) that wander about their means, as real ones do."""
    noise = draw.normal(size=(rows, steps, len(scaling.mean)))
    for t in range(1, steps):  # neighbours correlate by 0.8, the variance stays 1
        noise[:, t] = 0.8 * noise[:, t - 1] + 0.6 * noise[:, t]
    return (np.array(scaling.mean) + np.array(scaling.deviation) * noise).astype(np.float32)


def _golden(step: Step, states: tuple[StateSpec, ...], x: Floats) -> Golden:
    lengths = np.array(GOLDEN_LENGTHS, np.int32)
    y, _ = step(x, lengths, _initial(states, len(x)))
    beyond = np.arange(x.shape[1]) >= lengths[:, None]
    x, y = x.copy(), y.copy()
    x[beyond], y[beyond] = 0.0, 0.0
    return Golden(x, lengths, y)


def check_bundle(bundle: Bundle) -> float:
    """Load a written bundle's graph and replay its golden sequences, as a worker does at start.

    Returns the largest difference. Raises BundleError.
    """
    manifest = bundle.manifest
    session = _session(bundle.step_path.read_bytes())
    contract.check_signature(bundle, _names(session.get_inputs()), _names(session.get_outputs()))
    # The golden sequences are several, so that min_rows is met.
    return contract.check_golden(bundle, _step(session, manifest.states))


def _names(values: Any) -> dict[str, tuple[str, list[Any]]]:
    return {value.name: (value.type, list(value.shape)) for value in values}


def _session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # as the worker runs it
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _step(session: Any, states: tuple[StateSpec, ...]) -> Step:
    names = ["y", *(state.output for state in states)]

    def step(
        x: Floats, lengths: NDArray[np.int32], carried: Mapping[str, Floats]
    ) -> tuple[Floats, dict[str, Floats]]:
        y, *after = session.run(names, {"x": x, "lengths": lengths, **carried})
        return y, {state.input: value for state, value in zip(states, after, strict=True)}

    return step
