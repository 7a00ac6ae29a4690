"""What the owner of a model says about it: flags of `keyfold-export wrap`, or a small TOML file.

Owns the arguments, the form of the file, and the specs made of them. A flag beats the file. It
knows nothing of graphs: whether the names exist is layout.py's question. Called by cli.py.

The file has the parts of a manifest, as far as they are set:

    [graph]      # x, y, lengths, states, layout, max_steps, activation, initial
    [scaling]    # mean, deviation (per column), output_mean, output_deviation (per output)
    [events]     # key_field, time_field, time_unit, time_zone, tombstone, reset_after_ms, decoder
    [features]   # fields: names, or tables as in a manifest; since_last, long
    [outputs]    # kind, names; forecast and anomaly as in a manifest
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyfold.export.errors import SpecError
from keyfold.export.events import EventSpec, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.wrap.adapt import Scaling
from keyfold.export.wrap.own_graph import WrapError

NEAR = 1e-4  # relative difference of two frameworks' float32 over some hundred steps
ORDERS = ("BTF", "TBF", "BF")
ACTIVATIONS = ("softmax", "sigmoid")
PARTS = ("graph", "scaling", "events", "features", "outputs")


@dataclass(frozen=True, slots=True)
class Graph:
    """What is said of the graph; what is left out is found."""

    x: str = ""  # input with the event's numbers; "": the only one that is no state
    y: str = ""  # output with the predictions; "": the first one that is no state
    lengths: str = ""  # input with each row's number of steps; "": there is none
    states: tuple[tuple[str, str], ...] = ()  # pairs of input and output
    layout: str = ""  # order of x: "BTF", "TBF" or "BF"; "": tried
    max_steps: int | None = None  # 1: never more than one step a call; None: as many as proven
    initial: Mapping[str, float] = field(default_factory=dict)  # by state input; others: 0


@dataclass(frozen=True, slots=True)
class Request:
    """All that the owner says."""

    model: Path  # .onnx or .keras
    graph: Graph  # names and layout
    scaling: Scaling  # done around the graph
    events: EventSpec  # record -> event
    features: FeatureSpec  # event -> columns
    outputs: OutputSpec  # y -> prediction
    golden: Path | None  # the owner's own sequences
    parity: Path | None  # a Keras model that computes the same
    near: float  # relative difference to them that is allowed
    out: Path  # folder of bundles


def read_request(argv: Sequence[str]) -> Request:
    """Read the command's arguments and the file they name. Raises WrapError, SpecError."""
    given = _parser().parse_args(argv)
    parts = _read_spec(given.spec) if given.spec is not None else {}
    graph, scaling = dict(parts.get("graph", {})), dict(parts.get("scaling", {}))
    events, outputs = dict(parts.get("events", {})), dict(parts.get("outputs", {}))
    features = dict(parts.get("features", {}))
    for name in ("x", "y", "lengths", "states", "layout", "max_steps", "initial", "activation"):
        _override(graph, name, getattr(given, name))
    for name in ("key_field", "time_field", "time_unit", "time_zone", "tombstone", "decoder"):
        _override(events, name, getattr(given, name))
    if given.reset_after_s is not None:
        events["reset_after_ms"] = round(given.reset_after_s * 1000)
    _override(features, "fields", given.features and given.features.split(","))
    if given.output is not None:
        outputs = {"kind": given.output[0], "names": given.output[1:]}
    for name in ("mean", "deviation"):
        text = getattr(given, name)
        _override(scaling, name, text and [_number(f"--{name}", item) for item in text.split(",")])
    scaling["activation"] = graph.pop("activation", "")
    request = Request(
        given.model, _graph(graph), _scaling(scaling), _events(events), _features(features),
        _outputs(outputs), given.golden, given.parity, given.near, given.out,
    )  # fmt: skip
    _check_widths(request)
    return request


def _override(part: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        part[name] = value


def _read_spec(file: Path) -> dict[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise WrapError(f"{file}: expected TOML (or .json): {error}") from error
    # A training run's spec.json has more than is asked for here.
    unknown = [name for name in data if name not in PARTS] if file.suffix != ".json" else []
    if unknown:
        raise WrapError(f"{file}: unknown part {unknown[0]!r}; expected {', '.join(PARTS)}")
    parts = {name: data[name] for name in PARTS if name in data}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise WrapError(f"{file}: {name}: expected a section [{name}]")
    return parts


def _graph(part: Mapping[str, Any]) -> Graph:
    _check_names("graph", part, [f.name for f in dataclasses.fields(Graph)] + ["activation"])
    states = tuple(_pair(text) for text in part.get("states", ()))
    initial = part.get("initial", {})
    if not isinstance(initial, Mapping):
        initial = dict(_initial(text) for text in initial)
    for name, value in initial.items():
        _number(f"--initial {name}", value)
    graph = Graph(**{**part, "states": states, "initial": dict(initial)})
    for name, value, allowed in (
        ("layout", graph.layout, ("", *ORDERS)), ("max_steps", graph.max_steps, (None, 1))
    ):  # fmt: skip
        if value not in allowed:
            choices = " or ".join(str(choice) for choice in allowed if choice)
            raise WrapError(f"graph.{name}: expected {choices}, got {value!r}")
    return graph


def _pair(text: object) -> tuple[str, str]:
    before, colon, after = str(text).rpartition(":")
    if not (before and colon and after):
        raise WrapError(f"--states {text}: expected IN:OUT, the graph's names of one state tensor")
    return before, after


def _initial(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise WrapError(f"--initial {text}: expected STATE=NUMBER")
    return name, _number(f"--initial {name}", value)


def _number(what: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise WrapError(f"{what}: expected a finite number, got {value!r}")
    return number


def _scaling(part: Mapping[str, Any]) -> Scaling:
    _check_names("scaling", part, [f.name for f in dataclasses.fields(Scaling)])
    if part["activation"] not in ("", *ACTIVATIONS):
        raise WrapError(
            f"--activation: expected {' or '.join(ACTIVATIONS)}, got {part['activation']!r}"
        )
    numbers = {
        name: tuple(_number(f"scaling.{name}", value) for value in values)
        for name, values in part.items()
        if name != "activation"
    }
    for name in ("deviation", "output_deviation"):
        if not all(value > 0 for value in numbers.get(name, ())):
            raise WrapError(f"scaling.{name}: expected numbers above 0, got {numbers[name]}")
    return Scaling(**numbers, activation=part["activation"])


def _events(part: Mapping[str, Any]) -> EventSpec:
    part = {name: value for name, value in part.items() if name != "codec"}
    _check_names("events", part, [f.name for f in dataclasses.fields(EventSpec)])
    return EventSpec(**part)


def _features(part: dict[str, Any]) -> FeatureSpec:
    fields = part.get("fields", ())
    if not fields:
        raise WrapError("--features: expected the names of the model's inputs: a,b,c; got none")
    _check_names("features", part, ["fields", "since_last", "long"])
    tables = [{"name": f, "kind": "number"} if isinstance(f, str) else f for f in fields]
    try:
        return FeatureSpec.from_json({**part, "fields": tables})
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"features: expected fields as in a manifest: {error}") from error


def _outputs(part: Mapping[str, Any]) -> OutputSpec:
    if not part.get("kind"):
        raise WrapError(
            "--output: expected KIND NAME..., such as: regression rul, or classification walk run; "
            "got none"
        )
    _check_names("outputs", part, [f.name for f in dataclasses.fields(OutputSpec)])
    try:
        if part.get("forecast") is None:
            return OutputSpec.from_json({"names": (), **part})
        forecast = {"horizons": [1], "quantiles": [], **part["forecast"]}
        names = Forecast.from_json(forecast).names
        return OutputSpec.from_json({"names": names, **part, "forecast": forecast})
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"outputs: expected a manifest's form: {error}") from error


def _check_names(part: str, got: Mapping[str, Any], expected: Sequence[str]) -> None:
    for name in got:
        if name not in expected:
            raise WrapError(
                f"{part}.{name}: unknown setting; expected one of {', '.join(expected)}"
            )


def _check_widths(request: Request) -> None:
    scaling = request.scaling
    columns, outputs = len(request.features.columns), len(request.outputs.names)
    for name, width in (
        ("mean", columns), ("deviation", columns),
        ("output_mean", outputs), ("output_deviation", outputs),
    ):  # fmt: skip
        numbers = getattr(scaling, name)
        if numbers and len(numbers) != width:
            raise WrapError(f"scaling.{name}: expected {width} numbers, got {len(numbers)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-export wrap",
        description="Make a bundle of your own model: an ONNX graph (PyTorch's, say) that takes "
        "one state tensor or more and gives them back, or a Keras model. Names, order of axes and "
        "the handling of several steps are adapted and proven.",
    )
    add = parser.add_argument
    add("model", type=Path, help="model.onnx, or model.keras")
    add("--spec", type=Path, metavar="FILE", help="TOML with the parts of all this; flags win")
    graph = parser.add_argument_group("the graph").add_argument
    graph("--states", nargs="+", metavar="IN:OUT", help="its state tensors: h0:hn c0:cn")
    graph("--x", metavar="NAME", help="its input for the event (default: the one that is left)")
    graph("--y", metavar="NAME", help="its output (default: the first that is no state)")
    graph("--lengths", metavar="NAME", help="its input for each row's number of steps, if any")
    graph("--layout", choices=ORDERS, help="order of x (default: found by running it)")
    graph("--max-steps", type=int, choices=(1,), help="only ever one step a call")
    graph("--initial", nargs="+", metavar="IN=NUMBER", help="a new key's state (default: 0)")
    graph("--activation", choices=ACTIVATIONS, help="to add behind y, where y holds logits")
    graph("--mean", metavar="N,N", help="of each column, taken off before the graph")
    graph("--deviation", metavar="N,N", help="of each column, divided by")
    spec = parser.add_argument_group("events and predictions").add_argument
    spec("--features", metavar="A,B,C", help="the event's fields, in the order of x")
    spec("--output", nargs="+", metavar=("KIND", "NAME"), help="regression rul, or classification "
         "walk run")  # fmt: skip
    spec("--key", dest="key_field", metavar="FIELD", help="where a log file has the key")
    spec("--time", dest="time_field", metavar="FIELD", help="the event time (default: Kafka's)")
    spec("--time-unit", metavar="UNIT", help="ms, s, us, ns, iso or a pattern with % signs"
         .replace("%", "%%"))  # fmt: skip
    spec("--time-zone", metavar="ZONE", help="of times that name none (default: UTC)")
    spec("--tombstone", choices=("reject", "reset"), help="what a null value does to its key")
    spec("--reset-after-s", type=float, metavar="S", help="a key silent for longer starts anew")
    spec("--decoder", metavar="PKG:FN", help="your function from a record's value to a mapping")
    proof = parser.add_argument_group("proof").add_argument
    proof("--golden", type=Path, metavar="NPZ", help="x (rows, steps, columns) and y from your "
          "own framework, from initial states")  # fmt: skip
    proof("--parity", type=Path, metavar="KERAS", help="a Keras model that computes the same")
    proof("--near", type=float, default=NEAR, metavar="R",
          help=f"relative difference to them that is allowed (default: {NEAR:g})")  # fmt: skip
    add("--out", type=Path, default=Path("bundles"), help="folder of bundles")
    return parser
