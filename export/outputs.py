"""The output spec: what the model's output row means, and how an anomaly is judged from it.

Owns the names of the outputs and their order; for a forecast also which column is which field,
horizon and quantile. It computes nothing: anomaly.py scores, predictions.py writes. Called by
training and wrap (which make one), bundle (manifest), anomaly and predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from keyfold.export.errors import SpecError
from keyfold.export.generation import Generate
from keyfold.export.text import UNKNOWN_NAME, Text

OutputKind = Literal["regression", "classification", "forecast", "transcription"]
Answered = Literal["event", "session"]
Read = Literal["last", "every"]
NOTHING = ""  # a transcription's first name: the blank between symbols
# A prediction carries its key twice, and must fit a topic's default limit of 1 MiB. Where one event
# causes thousands, all of them together must fit the memory, though a key's bytes may be written as
# six each.
MAX_KEY_BYTES = 64 * 1024
MAX_KEY_BYTES_OF_SEVERAL = 1024
MAX_WINDOW = 2048  # errors kept per key: 8 KiB of its state


@dataclass(frozen=True, slots=True)
class Dynamic:
    """The threshold that follows each key's own errors (Hundman et al. 2018, arXiv 1802.04431)."""

    window: int = 256  # smoothed errors kept per key
    smoothing: float = 0.1  # weight of the newest error in the moving average
    warm_up: int = 64  # errors of a key before its own threshold replaces the fixed one

    def __post_init__(self) -> None:
        if not 2 <= self.warm_up <= self.window <= MAX_WINDOW:
            raise SpecError(
                f"outputs.anomaly.dynamic: expected 2 <= warm_up <= window <= {MAX_WINDOW}, "
                f"got warm_up {self.warm_up} and window {self.window}"
            )
        if not 0 < self.smoothing <= 1:
            raise SpecError(
                f"outputs.anomaly.dynamic.smoothing: expected above 0 and at most 1, "
                f"got {self.smoothing}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"window": self.window, "smoothing": self.smoothing, "warm_up": self.warm_up}


@dataclass(frozen=True, slots=True)
class Anomaly:
    """How far from its forecast an event is, and how far is too far."""

    scales: tuple[float, ...]  # per forecast field: deviation of the errors on validation data
    threshold: float  # a score above it is flagged
    rate: float  # share of the validation events above it: where the threshold comes from
    dynamic: Dynamic | None = None  # a threshold per key instead, once the key is warm

    def __post_init__(self) -> None:
        if not all(0 < scale < math.inf for scale in self.scales):
            raise SpecError(
                f"outputs.anomaly.scales: expected numbers above 0, got {list(self.scales)}"
            )
        if not 0 <= self.threshold < math.inf or not 0 <= self.rate <= 1:
            raise SpecError(
                "outputs.anomaly: expected a threshold of at least 0 and a rate from 0 to 1, "
                f"got {self.threshold} and {self.rate}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        dynamic = {} if self.dynamic is None else {"dynamic": self.dynamic.to_json()}
        return {
            "scales": list(self.scales),
            "threshold": self.threshold,
            "rate": self.rate,
            **dynamic,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Anomaly:
        """Read the manifest's form."""
        dynamic = data.get("dynamic")
        return cls(
            tuple(data["scales"]),
            data["threshold"],
            data["rate"],
            None if dynamic is None else Dynamic(**dynamic),
        )


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How unlikely an event's symbols are to the model of next symbols, and how much is too much.

    The score is the mean negative log-likelihood of an event's symbols (likelihood.py).
    """

    threshold: float  # a score above it is flagged, in nats per symbol
    rate: float  # share of the validation events above it: where the threshold comes from

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf or not 0 <= self.rate <= 1:
            raise SpecError(
                "outputs.likelihood: expected a threshold of at least 0 and a rate from 0 to 1, "
                f"got {self.threshold} and {self.rate}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"threshold": self.threshold, "rate": self.rate}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Which values of which later events of the key the outputs are."""

    fields: tuple[str, ...]  # number or boolean members of an event, in their own unit
    horizons: tuple[int, ...] = (1,)  # events of the key ahead, ascending
    quantiles: tuple[float, ...] = ()  # ascending; (): one output, the mean

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise SpecError(
                f"outputs.forecast.fields: expected distinct names, got {list(self.fields)}"
            )
        ahead = self.horizons
        if not ahead or ahead[0] < 1 or list(ahead) != sorted(set(ahead)):
            raise SpecError(
                "outputs.forecast.horizons: expected ascending whole numbers from 1 on, "
                f"got {list(ahead)}"
            )
        levels = self.quantiles
        if not all(0 < q < 1 for q in levels) or list(levels) != sorted(set(levels)):
            raise SpecError(
                "outputs.forecast.quantiles: expected ascending numbers between 0 and 1, "
                f"got {list(levels)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the O output columns: field by field, then horizon, then quantile."""
        ends = [f"@{quantile:g}" for quantile in self.quantiles] or [""]
        return tuple(
            f"{field}+{ahead}{end}"
            for field in self.fields
            for ahead in self.horizons
            for end in ends
        )

    @property
    def point_columns(self) -> tuple[int, ...]:
        """Per field, the column of its point forecast (mean or median) at the first horizon."""
        levels = self.quantiles
        middle = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5)) if levels else 0
        width = len(self.horizons) * max(1, len(levels))
        return tuple(number * width + middle for number in range(len(self.fields)))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {
            "fields": list(self.fields),
            "horizons": list(self.horizons),
            "quantiles": list(self.quantiles),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Forecast:
        """Read the manifest's form."""
        return cls(tuple(data["fields"]), tuple(data["horizons"]), tuple(data["quantiles"]))


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the model's output row of O numbers means."""

    # values in label units, probabilities (of labels; of blank and symbols), or of later events
    kind: OutputKind
    # regression, forecast: a name per output; classification: a label each; transcription: NOTHING,
    names: tuple[str, ...]  # then a symbol each
    forecast: Forecast | None = None  # kind "forecast": which output is which
    anomaly: Anomaly | None = None  # kind "forecast": how events are scored; None: they are not
    top: int = 0  # classification: labels whose probabilities are written; 0: all, as a list
    likelihood: Likelihood | None = None  # next symbols: how texts are scored; None: they are not
    generate: Generate | None = None  # symbols: how events are answered; None: they are not
    target: Text | None = None  # generate: whose symbols; None: those of the text that is read
    answers: Answered = "event"  # every event is answered, or every session where it ends
    read: Read = "last"  # of an event of several steps: its last output counts, or every one
    delay: int = 0  # look-ahead: an answer is about the event so many before its cause

    def __post_init__(self) -> None:
        if self.kind not in get_args(OutputKind):
            raise SpecError(
                "outputs.kind: expected 'regression', 'classification', 'forecast' or "
                f"'transcription', got {self.kind!r}"
            )
        least = 2 if self.kind in ("classification", "transcription") else 1
        if len(self.names) < least or len(set(self.names)) != len(self.names):
            raise SpecError(
                f"outputs.names: expected at least {least} distinct names for {self.kind}, "
                f"got {list(self.names)}"
            )
        self._check_transcription()
        self._check_forecast()
        self._check_classes()
        self._check_generate()
        self._check_answers()

    def _check_transcription(self) -> None:
        if self.kind != "transcription":
            return
        if self.names[0] != NOTHING or not all(self.names[1:]):
            raise SpecError(
                "outputs.names: expected an empty name for the blank, then symbols, for "
                f"transcription, got {list(self.names)}"
            )
        if not self.is_straight:
            raise SpecError(
                "outputs.kind: expected answers = 'event', read = 'last' and no delay with "
                "'transcription': a symbol is told at the event where it is recognised"
            )

    def _check_answers(self) -> None:
        if self.answers not in get_args(Answered):
            raise SpecError(f"outputs.answers: expected 'event' or 'session', got {self.answers!r}")
        if self.read not in get_args(Read):
            raise SpecError(f"outputs.read: expected 'last' or 'every', got {self.read!r}")
        delay: object = self.delay
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
            raise SpecError(f"outputs.delay: expected 0 or more events, got {delay!r}")
        used = [f"outputs.answers = {self.answers!r}"] if self.answers != "event" else []
        used += [f"outputs.read = {self.read!r}"] if self.read != "last" else []
        used += [f"outputs.delay = {self.delay}"] if self.delay else []
        if len(used) > 1:
            raise SpecError(f"outputs: expected one of {' and '.join(used)}, got both")
        if used and self.kind not in ("regression", "classification"):
            raise SpecError(f"{used[0]}: expected regression or classification, got {self.kind!r}")
        others: dict[str, object] = {"likelihood": self.likelihood, "generate": self.generate}
        if used and (given := [name for name, one in others.items() if one is not None]):
            raise SpecError(f"{used[0]}: expected no outputs.{given[0]} with it, got one")

    @property
    def describes_others(self) -> bool:
        """Whether a prediction may be about another event than the one that caused it."""
        return self.answers != "event" or self.delay > 0

    @property
    def is_straight(self) -> bool:
        """Whether each event causes one prediction, about itself."""
        return not self.describes_others and not self.is_several

    @property
    def is_several(self) -> bool:
        """Whether an event causes a prediction for each of many symbols."""
        return self.read == "every" or self.generate is not None

    @property
    def most_key_bytes(self) -> int:
        """Bytes of the longest key: every prediction shows it."""
        return MAX_KEY_BYTES_OF_SEVERAL if self.is_several else MAX_KEY_BYTES

    def _check_classes(self) -> None:
        top: object = self.top
        most = len(self.names) if self.kind == "classification" else 0
        if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= most:
            raise SpecError(f"outputs.top: expected 0 to {most} for {self.kind}, got {top!r}")
        if self.likelihood is not None and self.kind != "classification":
            raise SpecError(
                f"outputs.likelihood: expected for next symbols alone, got {self.kind!r}"
            )

    def _check_generate(self) -> None:
        generate = self.generate
        if generate is None:
            if self.target is not None:
                raise SpecError("outputs.target: expected outputs.generate with it, got none")
            return
        if self.kind != "classification" or self.top or self.likelihood is not None:
            raise SpecError(
                "outputs.generate: expected next symbols alone, without top and likelihood, got "
                f"{self.kind}"
            )
        if generate.until not in self.names or generate.until == UNKNOWN_NAME:
            raise SpecError(
                f"outputs.generate.until: expected one of the symbols, got {generate.until!r}"
            )
        if self.target is not None and self.names != self.target.names:
            raise SpecError("outputs.names: expected the symbols of outputs.target, got others")

    def _check_forecast(self) -> None:
        forecast, anomaly = self.forecast, self.anomaly
        if (forecast is not None) != (self.kind == "forecast"):
            raise SpecError(
                f"outputs.forecast: expected for kind 'forecast' and no other, got {self.kind!r}"
            )
        if forecast is not None and self.names != forecast.names:
            raise SpecError(
                f"outputs.names: expected {list(forecast.names)} for this forecast, "
                f"got {list(self.names)}"
            )
        if anomaly is None:
            return
        if forecast is None or forecast.horizons[0] != 1:
            raise SpecError("outputs.anomaly: expected a forecast with horizon 1, got none")
        if len(anomaly.scales) != len(forecast.fields):
            raise SpecError(
                f"outputs.anomaly.scales: expected {len(forecast.fields)}, one per forecast field, "
                f"got {len(anomaly.scales)}"
            )

    @classmethod
    def of_forecast(cls, forecast: Forecast, anomaly: Anomaly | None = None) -> OutputSpec:
        """Return the spec of a forecast, its names included."""
        return cls("forecast", forecast.names, forecast, anomaly)

    @property
    def targets(self) -> tuple[str, ...]:
        """Fields whose values scoring needs: what the decoder has to observe."""
        return () if self.forecast is None or self.anomaly is None else self.forecast.fields

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not used does not stand in it."""
        data: dict[str, Any] = {"kind": self.kind, "names": list(self.names)}
        if self.forecast is not None:
            data["forecast"] = self.forecast.to_json()
        if self.anomaly is not None:
            data["anomaly"] = self.anomaly.to_json()
        if self.top:
            data["top"] = self.top
        if self.likelihood is not None:
            data["likelihood"] = self.likelihood.to_json()
        if self.generate is not None:
            data["generate"] = self.generate.to_json()
        if self.target is not None:
            data["target"] = self.target.to_json()
        if self.answers != "event":
            data["answers"] = self.answers
        if self.read != "last":
            data["read"] = self.read
        if self.delay:
            data["delay"] = self.delay
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OutputSpec:
        """Read the manifest's form."""
        forecast, anomaly = data.get("forecast"), data.get("anomaly")
        likelihood, generate = data.get("likelihood"), data.get("generate")
        target = data.get("target")
        return cls(
            data["kind"],
            tuple(data["names"]),
            None if forecast is None else Forecast.from_json(forecast),
            None if anomaly is None else Anomaly.from_json(anomaly),
            top=data.get("top", 0),
            likelihood=None if likelihood is None else Likelihood(**likelihood),
            generate=None if generate is None else Generate.from_json(generate),
            target=None if target is None else Text.from_json(target),
            answers=data.get("answers", "event"),
            read=data.get("read", "last"),
            delay=data.get("delay", 0),
        )
