"""Is a wrapped graph a step that can be carried, and does it compute what its owner's model did?

Owns the checks that a wrapped bundle must pass before it is written: the same results however
events are grouped, states that are really carried, and the owner's golden sequences. The graph is
run as the worker runs it. It knows the contract and nothing of the graph inside. Called by cli.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import TOLERANCE, Golden
from keyfold.export.states import cold
from keyfold.export.verify import GOLDEN_LENGTHS, LARGEST_TOLERANCE, NOISE_FACTOR
from keyfold.export.wrap.own_graph import WrapError
from keyfold.export.wrap.step import Floats, Grouping, States, Step
from keyfold.export.wrap.truth import ROWS, STEPS, Truth

AHEAD = 16  # steps in which a state must show in the outputs
PADDING = 9  # NaN steps beyond every row's length
SUM_NEAR = 1e-3  # of probabilities to 1
# Relative difference between two groupings: as much as two float32 orders of summing may make.
NEAR_ITSELF = LARGEST_TOLERANCE / NOISE_FACTOR
NOBODY = "itself, however events are grouped"  # where the owner gave nothing to compare with

ONE_BY_ONE = Grouping("one step a call", ROWS)
NARROW = (Grouping("B=1", 1), Grouping("B=2", 2), Grouping("B=3", 3))
WHOLE = Grouping("whole sequences", ROWS, (STEPS,))
LONG = (
    Grouping("B=1, T=64", 1, (64,)),
    Grouping("B=3, T=1, 7, 50", 3, (1, 7, 50)),
    Grouping(f"T=31, 2, NaN padding of {PADDING}", ROWS, (31, 2), PADDING),
)


@dataclass(frozen=True, slots=True)
class Claims:
    """What is to be proven of a graph."""

    long: bool  # several steps in one call, rows of different lengths
    whole: bool  # several steps in one call, all rows of one length: compared, if nothing more
    probabilities: bool  # y holds probabilities
    near: float  # relative difference to what the owner's framework computed that is allowed
    truths: tuple[Truth, ...] = ()  # that


@dataclass(frozen=True, slots=True)
class Proof:
    """What was checked and found."""

    golden: Golden  # for the bundle
    min_rows: int  # smallest B from which on results do not depend on B
    identical: bool  # all groupings gave the same bits
    source: str  # what it was compared with
    largest_difference: float  # to it
    allowed: float  # of that
    tolerance: float  # for the manifest
    steps: int  # carried
    notes: tuple[str, ...] = field(default=())  # what the owner should know


def prove(step: Step, inputs: Floats, claims: Claims) -> Proof:
    """Check a dressed graph on inputs (B,T,F) like its own. Raises WrapError."""
    base = step.carry(inputs, ONE_BY_ONE)
    scale = _scale(base[0])
    _check_outputs(base[0], claims.probabilities)
    notes = _check_states(step, inputs)
    step, noise, identical = _compare(step, inputs, claims, base)
    # A graph of one step a call cannot run a sequence, not even to be checked.
    golden = _golden(step, inputs, GOLDEN_LENGTHS)
    source, worst, allowed, steps = NOBODY, noise, NEAR_ITSELF * scale, inputs.shape[1]
    relative = noise / scale
    for truth in claims.truths:
        source, steps = truth.source, int(truth.lengths.max())
        worst, allowed, of_scale = _compare_with(step, truth, claims.near)
        relative = max(relative, of_scale)
        if steps == 1:
            notes.append(f"{source}: sequences of one step say nothing about states: give longer")
    if not claims.truths:
        notes.append(
            "nothing to compare with (--golden, --parity): only the owner knows whether "
            "the pairs of --states, the features' order and their scaling are right"
        )
    return Proof(
        golden, step.min_rows, identical, source, worst, allowed, _tolerance(relative), steps,
        tuple(notes),
    )  # fmt: skip


def _scale(y: NDArray[Any]) -> float:
    return max(1.0, float(np.sqrt(np.mean(np.square(y, dtype=np.float64)))))


def _check_outputs(y: Floats, probabilities: bool) -> None:
    if not np.isfinite(y).all():
        step = int(np.argwhere(~np.isfinite(y))[:, 1].min())
        raise WrapError(f"y: expected finite numbers, got nan or infinity at step {step + 1}")
    sums = y.sum(axis=2)
    if probabilities and ((y < 0).any() or (np.abs(sums - 1) > SUM_NEAR).any()):
        raise WrapError(
            f"y: expected probabilities that sum to 1 for a classification, got sums from "
            f"{sums.min():.3g} to {sums.max():.3g}; --activation softmax, if they are logits"
        )


def _check_states(step: Step, x: Floats) -> list[str]:
    """Refuse a state that never changes; return a note for one that shows in nothing."""
    half = x.shape[1] // 2
    _, middle = step.carry(x[:, :half], ONE_BY_ONE)
    ones = np.ones(len(x), np.int32)
    _, next_states = step(x[:, half : half + 1], ones, middle)
    notes = []
    for state in step.states:
        pair, name = f"state {state.input}:{state.output}", state.input
        if np.array_equal(next_states[name], middle[name]):
            raise WrapError(
                f"{pair}: expected a step to change it, got the same tensor back; is the pair "
                "right, and does the graph put out the new state?"
            )
        if not _shows(step, x[:, half : half + AHEAD], middle, name):
            notes.append(
                f"{pair} changes no output within {AHEAD} steps and no other state: the model does "
                "not use it"
            )
    if len(notes) == len(step.states):
        raise WrapError(
            "states: expected outputs to depend on at least one of them, got the same outputs "
            "without; the graph does not carry its memory through the named inputs"
        )
    return notes


def _shows(step: Step, x: Floats, states: States, name: str) -> bool:
    """Tell whether y or another state would be another one, were this state cold."""
    without = {**states, name: cold(step.states, len(x))[name]}
    ones = np.ones(len(x), np.int32)
    for t in range(x.shape[1]):
        y, states = step(x[:, t : t + 1], ones, states)
        other_y, without = step(x[:, t : t + 1], ones, without)
        same = all(np.array_equal(states[n], without[n]) for n in states if n != name)
        if not (same and np.array_equal(y, other_y)):
            return True
    return False


def _compare(
    step: Step, x: Floats, claims: Claims, base: tuple[Floats, States]
) -> tuple[Step, float, bool]:
    """Compare all groupings with one step a call; return the step, padded from now on if it must.

    Also the largest difference of outputs, and whether there was none at all, states included.
    """
    alone = step.carry(x, NARROW[0])
    if not _same(alone, base):
        step = Step(step.session, step.states, 2)
    scale, worst, identical = _scale(base[0]), 0.0, True
    groupings = [*NARROW, *(LONG if claims.long else ())]
    groupings += [WHOLE] if claims.long or claims.whole else []
    for grouping in groupings:
        y, after = step.carry(x, grouping)
        gaps = np.abs(y - base[0]).max(axis=(0, 2))
        if claims.long:
            gaps[-1] = max(gaps[-1], *(_distance(after[n], base[1][n]) for n in after))
        if not gaps.max() <= NEAR_ITSELF * scale:
            _refuse(grouping, gaps, NEAR_ITSELF * scale)
        worst = max(worst, float(gaps.max()))
        identical &= _same((y, after if claims.long else base[1]), base)
    return step, worst, identical


def _refuse(grouping: Grouping, gaps: NDArray[Any], allowed: float) -> None:
    # The first step that differs says more than the worst one.
    first = int(np.argmax(~(gaps <= allowed)))
    why = "the number of rows must not matter"
    if grouping.steps != (1,):
        why = (
            "are the pairs of --states right, and is all that the model remembers among them "
            "(--max-steps 1, if it is only meant to run step by step)?"
        )
    raise WrapError(
        f"{grouping.name}: expected the outputs and states of one step a call within "
        f"{allowed:.3g}, got a difference of {gaps[first]:.3g} at step {first + 1}; {why}"
    )


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))


def _same(a: tuple[Floats, States], b: tuple[Floats, States]) -> bool:
    return np.array_equal(a[0], b[0]) and all(np.array_equal(a[1][n], b[1][n]) for n in a[1])


def _compare_with(step: Step, truth: Truth, near: float) -> tuple[float, float, float]:
    """Compare with the owner's golden sequences: largest difference, what is allowed, relative."""
    y, _ = step.carry(truth.x, Grouping("", len(truth.x)))
    valid = np.arange(truth.x.shape[1]) < truth.lengths[:, None]
    expected = truth.y
    if expected.ndim == 2:  # the last step of each row
        valid &= np.arange(truth.x.shape[1]) == truth.lengths[:, None] - 1
        expected = np.repeat(expected[:, None], truth.x.shape[1], axis=1)
    scale = _scale(expected[valid])
    gaps = np.where(valid[..., None], np.abs(y - expected), 0.0).max(axis=(0, 2))
    if not gaps.max() <= near * scale:
        first = int(np.argmax(~(gaps <= near * scale)))
        raise WrapError(
            f"{truth.source}: expected outputs within {near * scale:.3g}, got a difference of "
            f"{gaps[first]:.3g} at step {first + 1} of {truth.x.shape[1]}; check the pairs of "
            "--states, their initial values, the order of the features and the scaling; x is "
            "(rows, steps, columns) in the events' own units, y what is predicted, behind any "
            "--activation"
        )
    return float(gaps.max()), near * scale, float(gaps.max()) / scale


def _tolerance(relative: float) -> float:
    """Return TOLERANCE, or enough for the differences seen, rounded up to one digit."""
    wanted = NOISE_FACTOR * relative
    if wanted <= TOLERANCE:
        return TOLERANCE
    digit = 10.0 ** math.floor(math.log10(wanted))
    return min(LARGEST_TOLERANCE, float(f"{math.ceil(wanted / digit) * digit:.0e}"))


def _golden(step: Step, x: Floats, sizes: tuple[int, ...]) -> Golden:
    """Return sequences for the bundle, with the outputs of this graph, one step a call."""
    lengths = np.array(sizes, np.int32)
    x = x[: len(lengths), : max(sizes)].copy()
    y, _ = step.carry(x, Grouping("", len(x)))
    beyond = np.arange(x.shape[1]) >= lengths[:, None]
    x[beyond], y[beyond] = 0.0, 0.0
    return Golden(x, lengths, y)
