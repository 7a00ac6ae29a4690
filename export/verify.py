"""Is the step graph the model? Parity with Keras, and with itself however events are grouped.

Owns the checks that a bundle must pass before it is written, and the golden sequences it then
carries. The reference is the Keras model over whole sequences; the graph is run by ONNX Runtime as
the worker runs it. Inputs are drawn from the features' learned means and deviations, so that a
bundle holds no record of anybody. Called by cli.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.bundle import TOLERANCE, Bundle, Golden, StateSpec
from keyfold.export.calls import Floats, Step, in_calls
from keyfold.export.errors import BundleError
from keyfold.export.motion import Motion
from keyfold.export.states import Tensors
from keyfold.export.text import END, FIRST

STEPS = 1_200  # carried in each comparison
ROWS = 8
GOLDEN_LENGTHS = (48, 1, 17, 33)
# A recurrent net carries rounding along and may amplify it. Two right float32 implementations then
# differ by more than TOLERANCE; by how much is measured on the model itself, without the graph.
NOISE_FACTOR = 10.0  # of the model's own float32 noise that a graph may differ by
LARGEST_TOLERANCE = 1e-3  # beyond this, machines of different kinds would disagree visibly

Reference = Callable[[NDArray[Any]], NDArray[Any]]  # x (B,T,F) -> y (B,T,O), from initial states


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

    tolerance: float  # for the manifest: TOLERANCE, or more where the model amplifies rounding
    noise: float  # largest difference between the model in float32 and in float64
    largest_difference: float  # between graph and model, over all groupings
    allowed: float  # tolerance times the scale of the outputs
    steps: int  # carried in each grouping
    min_rows: int  # smallest B from which on results do not depend on B
    identical: bool  # all groupings gave the same outputs and states, bit for bit
    golden: Golden  # for the bundle


@dataclass(frozen=True, slots=True)
class Model:
    """What a graph is compared with."""

    float32: Reference  # the model, as trained
    float64: Reference  # the same weights, computed in float64
    mean: tuple[float, ...]  # per feature, as learned
    deviation: tuple[float, ...]  # per feature, as learned
    motion: Motion | None = None  # how features move, as learned; None: not known
    symbols: int = 0  # of a text: inputs are numbers of so many symbols; 0: features
    width: int = 0  # the last so many columns are symbols of one text, behind the features; 0: none


def verify(
    graph: bytes,
    states: tuple[StateSpec, ...],
    model: Model,
    seed: int = 0,
    max_steps: int = STEPS,
) -> Proof:
    """Compare a step graph with its model. Raises ParityError: what, where, expected, got.

    No call has more than `max_steps` steps: the groupings that have are cut.
    """
    step = in_calls(_step(_session(graph), states), max_steps)
    draw = np.random.default_rng(seed)
    x = _draw_inputs(draw, model, ROWS, STEPS)
    expected = model.float32(x)
    scale = max(1.0, float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))
    noise = float(np.abs(expected - model.float64(x.astype(np.float64))).max())
    tolerance = tolerance_of(noise / scale)
    allowed = tolerance * scale
    min_rows = _smallest_rows(step, states, x)
    runs = [_run(step, states, x, grouping, min_rows) for grouping in GROUPINGS]
    worst = 0.0
    for grouping, (y, _) in zip(GROUPINGS, runs, strict=True):
        difference = float(np.abs(y - expected).max())
        if not difference <= allowed:  # also NaN
            raise ParityError(
                f"step graph, {grouping.name}, {STEPS} carried steps: expected outputs within "
                f"{allowed:.3g} of Keras, got a difference of {difference:.3g}"
            )
        worst = max(worst, difference)
    identical = all(_same(runs[0], run) for run in runs)
    golden = _golden(
        step, states, _draw_inputs(draw, model, len(GOLDEN_LENGTHS), max(GOLDEN_LENGTHS))
    )
    return Proof(tolerance, noise, worst, allowed, STEPS, min_rows, identical, golden)


def tolerance_of(relative_noise: float) -> float:
    """Return TOLERANCE, or enough for the model's own noise, rounded up to one digit."""
    if not np.isfinite(relative_noise):
        raise ParityError("model: expected finite outputs, got a difference of nan or infinity")
    wanted = NOISE_FACTOR * relative_noise
    if wanted <= TOLERANCE:
        return TOLERANCE
    if wanted > LARGEST_TOLERANCE:
        raise ParityError(
            f"model: expected float32 rounding to change outputs by less than "
            f"{LARGEST_TOLERANCE / NOISE_FACTOR:g} of their size over {STEPS} steps, got "
            f"{relative_noise:.7g}; the recurrence amplifies it, and machines would disagree: "
            "train again with fewer fit.passes, a lower fit.learning_rate, smaller model.units, "
            "fit.weight_decay = 0.01 with fit.optimizer = 'adamw' or, where events are numbers, "
            "model.input_noise = 0.2"
        )
    digit = 10.0 ** math.floor(math.log10(wanted))
    return float(f"{math.ceil(wanted / digit) * digit:.0e}")


def _same(a: tuple[Floats, Tensors], b: tuple[Floats, Tensors]) -> bool:
    return np.array_equal(a[0], b[0]) and all(np.array_equal(a[1][n], b[1][n]) for n in a[1])


def _smallest_rows(step: Step, states: tuple[StateSpec, ...], x: Floats) -> int:
    """Return 1, or 2 where one row alone is computed by another kernel with other rounding."""
    one, two = (_run(step, states, x[:2, :64], Grouping("", rows, (1,)), 1)[0] for rows in (1, 2))
    return 1 if np.array_equal(one, two) else 2


def _run(
    step: Step, states: tuple[StateSpec, ...], x: Floats, grouping: Grouping, min_rows: int
) -> tuple[Floats, Tensors]:
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
    step: Step, carried: Tensors, x: Floats, grouping: Grouping
) -> tuple[Floats, Tensors]:
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


def _initial(states: tuple[StateSpec, ...], rows: int) -> Tensors:
    return {s.input: np.full((rows, *s.dims), s.initial, np.float32) for s in states}


def _draw_inputs(draw: np.random.Generator, model: Model, rows: int, steps: int) -> Floats:
    """Return features (B,T,F) that wander about their means, as real ones do, or symbols."""
    if model.width:
        texts = _draw_texts(draw, model, (rows, steps, model.width))
        if not model.mean:
            return texts
        features = _draw_inputs(draw, replace(model, width=0, symbols=0), rows, steps)
        return np.concatenate([features, texts], axis=2)
    if model.symbols:
        return draw.integers(0, model.symbols, (rows, steps, 1)).astype(np.float32)
    if model.motion is not None:
        return model.motion.draw(draw, rows, steps)
    noise = draw.normal(size=(rows, steps, len(model.mean)))
    for t in range(1, steps):  # neighbours correlate by 0.8, the variance stays 1
        noise[:, t] = 0.8 * noise[:, t - 1] + 0.6 * noise[:, t]
    return (np.array(model.mean) + np.array(model.deviation) * noise).astype(np.float32)


def _draw_texts(draw: np.random.Generator, model: Model, shape: tuple[int, int, int]) -> Floats:
    """Return rows of symbols (B,T,N) of any length, the empty text and a full row among them."""
    symbols = draw.integers(min(FIRST, model.symbols - 1), model.symbols, shape)
    lengths = draw.integers(0, model.width + 1, (*shape[:2], 1))
    return np.where(np.arange(model.width) < lengths, symbols, END).astype(np.float32)


def _golden(step: Step, states: tuple[StateSpec, ...], x: Floats) -> Golden:
    lengths = np.array(GOLDEN_LENGTHS, np.int32)
    y, _ = step(x, lengths, _initial(states, len(x)))
    beyond = np.arange(x.shape[1]) >= lengths[:, None]
    x, y = x.copy(), y.copy()
    x[beyond], y[beyond] = 0.0, 0.0
    return Golden(x, lengths, y)


def opened(graph: bytes, states: tuple[StateSpec, ...]) -> Step:
    """Return a graph as a function, run by ONNX Runtime as the worker runs it."""
    return _step(_session(graph), states)


def check_bundle(bundle: Bundle) -> float:
    """Load a written bundle's graphs and replay its golden sequences, as a worker does at start.

    Returns the largest difference. Raises BundleError.
    """
    manifest = bundle.manifest
    session = _session(bundle.step_path.read_bytes())
    contract.check_signature(bundle, _names(session.get_inputs()), _names(session.get_outputs()))
    # The golden sequences are several, so that min_rows is met.
    step = _step(session, manifest.states)
    worst = contract.check_golden(bundle, step)
    if manifest.decode is None:
        return worst
    session = _session(bundle.decode_path.read_bytes())
    contract.check_decode_signature(
        bundle, _names(session.get_inputs()), _names(session.get_outputs())
    )
    decode = _step(session, manifest.decode.states)
    return max(worst, contract.check_answers(bundle, step, decode))


def _names(values: Any) -> dict[str, tuple[str, list[Any]]]:
    return {value.name: (value.type, list(value.shape)) for value in values}


def _session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # as the worker runs it
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _step(session: Any, states: tuple[StateSpec, ...]) -> Step:
    names = ["y", *(state.output for state in states)]

    def step(x: Floats, lengths: NDArray[np.int32], carried: Tensors) -> tuple[Floats, Tensors]:
        y, *after = session.run(names, {"x": x, "lengths": lengths, **carried})
        return y, {state.input: value for state, value in zip(states, after, strict=True)}

    return step
