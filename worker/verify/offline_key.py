"""What one event does to a key offline: front, graph and back, one event at a time.

Owns the oracle's own step over everything that a key's state holds. The front is
offline_front.py's, the graph offline_step.py's, a threshold of the key's own
offline_threshold.py's; the scores are computed here. It
knows the contract of keyfold.export only, nothing of the worker's fold. Called by refold.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.features import FLOAT32_MAX
from keyfold.export.outputs import Anomaly, Forecast
from keyfold.worker.verify.offline_front import OfflineFront
from keyfold.worker.verify.offline_generation import OfflineGeneration, Said
from keyfold.worker.verify.offline_kept import OfflineKeeping
from keyfold.worker.verify.offline_likelihood import BOUNDS, OfflineLikelihood
from keyfold.worker.verify.offline_recognition import OfflineRecognition
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.offline_threshold import Judged, OfflineThreshold

Tensor = NDArray[Any]
UNJUDGED = Judged(nan, nan)


@dataclass(frozen=True, slots=True)
class Event:
    """What of an event decides its step."""

    # (F,) as decoded: what the front finishes is not finished yet; of a text (S,1), its symbols
    x: NDArray[np.float32]
    time_ms: int  # event time
    observed: NDArray[np.float32] | None  # (K,) what forecasts are compared with
    offset: int = -1  # of its record
    name: str = ""  # topic:partition:offset: what its answers' random numbers come from


@dataclass(frozen=True, slots=True)
class Stepped:
    """What the step led to."""

    y: NDArray[np.float32]  # (O,)
    # Per forecast field; NaN: no forecast or no value; [] without a back; of texts their bounds
    # (offline_likelihood.py), of a transcription what may be told (offline_recognition.py).
    scores: list[float]
    judged: Judged  # what the largest of them is judged by
    # (R,*dims) in storage order; row 0 is the key's. Behind them stands what is not stored.
    tensors: list[Tensor]
    each: list[NDArray[np.float32]] | None = None  # of a text: the outputs (O,) of its symbols
    said: list[Said] | None = None  # what may answer it, of a bundle that generates


class OfflineKey:
    """The step of one bundle over a key's whole state."""

    def __init__(self, step: OfflineStep) -> None:
        manifest = step.bundle.manifest
        self._step = step
        decode = manifest.decode
        self._anew = decode is not None and decode.anew  # what is read is no part of the state
        self._graph_states = 0 if self._anew else len(manifest.states)
        self._front = OfflineFront(manifest.features)
        self._front_names = list(self._front.cold())
        outputs = manifest.outputs
        tolerance = manifest.tolerance * step.bundle.golden.scale()
        self._generation = (
            OfflineGeneration(step, tolerance) if outputs.generate is not None else None
        )
        self.targets = outputs.targets
        self._back = (
            OfflineBack(outputs.forecast, outputs.anomaly, tolerance)
            if outputs.forecast is not None and outputs.anomaly is not None
            else None
        )
        self._recognition = (
            OfflineRecognition(len(outputs.names), tolerance)
            if outputs.kind == "transcription"
            else None
        )
        self._keeping, self._every = OfflineKeeping(outputs), outputs.read == "every"
        self._likelihood = (
            OfflineLikelihood(len(outputs.names), tolerance)
            if outputs.likelihood is not None
            else None
        )

    @property
    def fields(self) -> int:
        """How many scores an event has."""
        if self._recognition is not None:
            return self._recognition.columns
        return len(self.targets) if self._likelihood is None else BOUNDS

    def cold(self) -> list[Tensor]:
        """Return the tensors of a key without history, in storage order."""
        front = [values[None] for values in self._front.cold().values()]
        back = [] if self._back is None else self._back.cold()
        newest = [] if self._likelihood is None else [self._likelihood.cold()]
        best = [] if self._recognition is None else self._recognition.cold()
        graph = [] if self._anew else self._step.cold()
        return [*graph, *front, *back, *newest, *best, *self._keeping.cold()]

    def taken_over(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return another bundle's tensors of a key as this one steps them: for its own rows."""
        graph = tensors[: self._graph_states]
        rows = [np.repeat(tensor[:1], self._step.rows, 0) for tensor in graph]
        return [*rows, *tensors[self._graph_states :]]

    def one(self, event: Event, tensors: list[Tensor]) -> Stepped | None:
        """Step one event from `tensors`, which stay; None: a result is not finite."""
        count = self._keeping.count
        if not count:
            return self._one(event, tensors)
        stepped = self._one(event, tensors[:-count])
        if stepped is None:
            return None
        kept = self._keeping.one(stepped.y, event.offset, event.time_ms, tensors[-count:])
        return replace(stepped, tensors=[*stepped.tensors, *kept])

    def _one(self, event: Event, tensors: list[Tensor]) -> Stepped | None:
        """Step one event over all but what is kept of answers."""
        graph = tensors[: self._graph_states]
        rest = tensors[self._graph_states :]
        memory = {name: rest[i][0] for i, name in enumerate(self._front_names)}
        if event.x.ndim > 1:
            stepped = self._of_text(event.x, self._step.cold() if self._anew else graph, rest)
            return stepped if self._generation is None else self._answered(event, stepped)
        x = event.x
        if memory:
            x, memory = self._front.one(x, event.time_ms, memory)
        y, after = self._step.one(x[None], graph)
        if not (np.isfinite(y).all() and all(np.isfinite(tensor).all() for tensor in after)):
            return None
        after = [*after, *(values[None] for values in memory.values())]
        if self._recognition is not None:
            told, best = self._recognition.one(y, rest[len(memory) :])
            return Stepped(y, told, UNJUDGED, [*after, *best])
        if self._back is None:
            return Stepped(y, [], UNJUDGED, after)
        if event.observed is None:
            raise RuntimeError("expected observed values: the bundle scores events, got none")
        scores, judged, back = self._back.one(y, event.observed, rest[len(memory) :])
        return Stepped(y, scores, judged, [*after, *back])

    def _of_text(
        self, symbols: NDArray[np.float32], graph: list[Tensor], rest: list[Tensor]
    ) -> Stepped | None:
        """Step a text's symbols (S,1) one by one; the prediction is that of the last one."""
        y, finite = rest[-1][0] if self._likelihood is not None else np.empty(0, np.float32), True
        likely: list[float] = []  # each symbol's probability, by the output before it
        each: list[NDArray[np.float32]] = []
        for symbol in symbols:
            if self._likelihood is not None:
                likely.append(float(y[int(symbol[0])]))
            y, graph = self._step.one(symbol[None], graph)
            finite = finite and bool(np.isfinite(y).all())
            each += [y] if self._every else []
        if not (finite and all(np.isfinite(tensor).all() for tensor in graph)):
            return None
        if self._likelihood is None:
            return Stepped(y, [], UNJUDGED, graph, each)
        return Stepped(y, self._likelihood.bounds(likely), UNJUDGED, [*graph, y[None]])

    def _answered(self, event: Event, stepped: Stepped | None) -> Stepped | None:
        """Add what answers an event that was read."""
        if stepped is None or self._generation is None:
            return None
        said = self._generation.answers(stepped.y, stepped.tensors, event.name)
        return replace(stepped, said=said, tensors=[] if self._anew else stepped.tensors)


class OfflineBack:
    """How far events are from what was forecast for them; `tolerance` is that of an output."""

    def __init__(self, forecast: Forecast, anomaly: Anomaly, tolerance: float) -> None:
        self._scales, self._threshold = anomaly.scales, anomaly.threshold
        self._own = (
            OfflineThreshold(anomaly.dynamic, anomaly.threshold, tolerance / min(anomaly.scales))
            if anomaly.dynamic is not None
            else None
        )
        levels = forecast.quantiles
        median = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5)) if levels else 0
        of_a_field = len(forecast.horizons) * max(1, len(levels))
        self._points = [of_a_field * number + median for number in range(len(forecast.fields))]

    def cold(self) -> list[Tensor]:
        """Return what a key without history remembers, in storage order."""
        forecast = np.full((1, len(self._points)), np.nan, np.float32)
        return [forecast, *(self._own.cold() if self._own is not None else [])]

    def one(
        self, y: NDArray[np.float32], observed: NDArray[np.float32], memory: list[Tensor]
    ) -> tuple[list[float], Judged, list[Tensor]]:
        """Return an event's score per field, its judge, and what is remembered after it."""
        forecast = memory[0][0]
        scores = [
            min(abs(float(seen) - float(said)) / scale, FLOAT32_MAX)
            for seen, said, scale in zip(observed, forecast, self._scales, strict=True)
        ]
        score = float(np.float32(max((s for s in scores if not isnan(s)), default=nan)))
        judged, rest = Judged(self._threshold, score), memory[1:]
        if self._own is not None:
            judged, rest = self._own.one(score, rest)
        return scores, judged, [y[self._points][None], *rest]
