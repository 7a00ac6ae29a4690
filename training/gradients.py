"""Gradients made visible: their norms by layer and pass, and by how far back in time they reach.

Owns what is measured, the words for it, the file and the picture. A recurrent net learns from an
event k steps back only if d loss / d state reaches back so far (Hochreiter 1991; Pascanu et al.
2013, arXiv 1211.5063). Knows no training loop. Called by fit.py (measuring) and train.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from keyfold.training.losses import Loss
from keyfold.training.windows import Window

FILE, PICTURE = "gradients.json", "gradients.png"
MOST_LAGS = 256  # steps that are looked back at, at most
FADED = 0.01  # of the norm one step back: from there on hardly anything is learned
GROWN = 100.0  # times the norm one step back

# (x (B,1,F), states) -> (y (B,1,O), states after), differentiable
Step = Callable[[Any, list[Any]], tuple[Any, list[Any]]]


@dataclass(frozen=True, slots=True)
class PassNorms:
    """Gradient norms of one pass over the training sequences, before clipping."""

    mean: float  # of all gradients together, over the updates
    largest: float  # likewise
    clipped: float  # share of the updates whose gradients were clipped
    layers: dict[str, float]  # by layer, over the updates: root of the mean square


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a run tells of its gradients."""

    passes: tuple[PassNorms, ...] = ()  # one each
    lags_before: tuple[float, ...] = ()  # norm of d loss_T / d state_{T-k}, k = 1.., untrained
    lags_after: tuple[float, ...] = ()  # likewise, with the weights that were kept


class Norms:
    """Adds up the norms of a pass inside the compiled update."""

    def __init__(self, weights: Seq[Any]) -> None:
        """`weights`: Keras variables, in the order of their gradients."""
        names = [weight.path.split("/")[0] for weight in weights]
        self.layers = list(dict.fromkeys(names))
        self._place = tf.constant([self.layers.index(name) for name in names])
        self._squares = tf.Variable(tf.zeros(len(self.layers)))
        self._all = tf.Variable(tf.zeros(4))  # sum, largest, clipped, updates

    @property
    def variables(self) -> list[Any]:
        """What a checkpoint has to hold."""
        return [self._squares, self._all]

    def add(self, gradients: Seq[Any], clip_norm: float) -> Any:
        """Count one update's gradients; return the norm of all together, a tensor."""
        # As tf.linalg.global_norm reckons, digit by digit.
        halves = tf.stack([_half_square(gradient) for gradient in gradients])
        norm = tf.sqrt(tf.reduce_sum(halves) * tf.constant(2.0))
        by_layer = tf.math.unsorted_segment_sum(2.0 * halves, self._place, len(self.layers))
        self._squares.assign_add(by_layer)
        total, largest, clipped, updates = tf.unstack(self._all)
        beyond = tf.cast(norm > clip_norm, tf.float32)
        self._all.assign([total + norm, tf.maximum(largest, norm), clipped + beyond, updates + 1.0])
        return norm

    def taken(self) -> PassNorms:
        """Return what was added up, and begin anew."""
        total, largest, clipped, updates = (float(value) for value in self._all.numpy())
        count = max(updates, 1.0)
        roots = np.sqrt(self._squares.numpy().astype(np.float64) / count).tolist()
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))
        layers = dict(zip(self.layers, roots, strict=True))
        return PassNorms(total / count, largest, clipped / count, layers)


def _half_square(gradient: Any) -> Any:
    if gradient is None:
        return tf.constant(0.0)
    return tf.nn.l2_loss(gradient.values if hasattr(gradient, "values") else gradient)


def lag_norms(step: Step, loss: Loss, window: Window, states: list[Any]) -> tuple[float, ...]:
    """Return the mean norm of d loss_T / d state_{T-k} for k = 1, 2, ..

    T is each row's last event of the window that counts, so that labels may be rare. Empty when no
    event of the window counts.
    """
    steps = min(window.x.shape[1], MOST_LAGS)
    last, weights = _last_counting(window.weights[:, :steps])
    if (last < 0).all():
        return ()
    ys, seen = [], []
    with tf.GradientTape() as tape:
        for at in range(steps):
            states = [tf.convert_to_tensor(state) for state in states]
            for state in states:
                if state.dtype.is_floating:
                    tape.watch(state)
            seen.append(states)
            y, states = step(window.x[:, at : at + 1], states)
            ys.append(y)
        each = loss(tf.constant(window.labels[:, :steps]), tf.concat(ys, axis=1))
        total = tf.reduce_sum(each * weights)
    found = tape.gradient(total, seen, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    norms = np.stack([_norms(states_then) for states_then in found])  # (T,B)
    return tuple(_means(norms, last, window.fresh))


def _last_counting(weights: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each row's last step that counts (-1: none), and the weights of those alone."""
    counts: NDArray[np.bool_] = np.any(weights.reshape(*weights.shape[:2], -1), axis=2)  # (B,T)
    steps = counts.shape[1]
    last = np.where(counts.any(axis=1), steps - 1 - counts[:, ::-1].argmax(axis=1), -1)
    only = np.arange(steps) == last[:, None]
    return last, weights * only.reshape(*only.shape, *(1,) * (weights.ndim - 2))


def _norms(gradients: Iterable[Any]) -> NDArray[np.float64]:
    squares = [
        np.square(gradient.numpy().astype(np.float64)).reshape(len(gradient), -1).sum(axis=1)
        for gradient in gradients
        if gradient is not None and gradient.dtype.is_floating
    ]
    root: NDArray[np.float64] = np.sqrt(np.sum(squares, axis=0))
    return root


def _means(
    norms: NDArray[np.float64], last: NDArray[np.int64], fresh: NDArray[np.bool_]
) -> Iterable[float]:
    # What lies before a row that begins in this window is replaced by the initial state.
    most = last + 1 - fresh
    for lag in range(1, int(most.max()) + 1):
        rows = np.flatnonzero(most >= lag)
        # norms[t] is of the state before step t: one step back from the loss at t.
        yield float(norms[last[rows] + 1 - lag, rows].mean())


def verdict(gradients: Gradients) -> str | None:
    """Return one line when the gradients fade or grow within the window, None when they do not."""
    lags = np.array(gradients.lags_after or gradients.lags_before)
    if len(lags) < 4 or not np.isfinite(lags).all():
        return None if len(lags) < 4 else "gradients explode: their norms are not finite"
    if lags[0] == 0:
        return None
    share = lags / lags[0]
    if share.max() > GROWN:
        return (
            f"gradients explode: {share.max():,.0f} times larger {int(share.argmax()) + 1} events "
            "back than one: a smaller fit.learning_rate, or model.cell = 'lstm' or 'gru'"
        )
    reach = int(np.flatnonzero(share >= FADED).max()) + 1
    if reach <= len(share) // 4:
        return (
            f"gradients vanish: under {FADED:.0%} beyond {reach} of {len(share)} events back; what "
            "lies further back is hardly learned: try model.memory, or spare the rest of fit.window"
        )
    return None


def write(gradients: Gradients, clip_norm: float, folder: Path) -> None:
    """Write what was measured into a run's folder, as JSON and as a picture."""
    text = json.dumps({**asdict(gradients), "clip_norm": clip_norm}, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    draw(gradients, clip_norm, folder / PICTURE)


def draw(gradients: Gradients, clip_norm: float, file: Path) -> None:
    """Draw norms by events back, and by layer over the passes."""
    # The object interface: pyplot would need a display or a global switch.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    back, over = figure.subplots(1, 2)
    for lags, label in ((gradients.lags_before, "untrained"), (gradients.lags_after, "kept")):
        shown = np.array([lag if lag > 0 else np.nan for lag in lags])
        if np.isfinite(shown).any():
            back.plot(np.arange(1, len(lags) + 1), shown, label=label)
            back.set_yscale("log")
    back.set(xlabel="events back (k)", ylabel="norm of d loss / d state, k events back")
    passes = np.arange(1, len(gradients.passes) + 1)
    layers = gradients.passes[0].layers if gradients.passes else {}
    for name in layers:
        values = np.array([norms.layers[name] for norms in gradients.passes])
        over.plot(passes, np.where(values > 0, values, np.nan), label=name)
    over.axhline(clip_norm, linestyle=":", color="grey", label="clipped from here (all layers)")
    over.set(xlabel="pass", ylabel="norm of the gradient, by layer", yscale="log")
    for axis in (back, over):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
