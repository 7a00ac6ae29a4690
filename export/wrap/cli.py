"""`keyfold-export wrap`: somebody's own model becomes a bundle, once it is proven to be a step.

Owns the order: read, find the layout, dress in the contract, prove, write. What can be adapted is
adapted and said; what cannot is one line: what, where, expected, got. Called by export/cli.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from keyfold.export import bundle as contract
from keyfold.export.bundle import Manifest
from keyfold.export.states import OWN_PREFIXES, StateSpec
from keyfold.export.verify import check_bundle
from keyfold.export.wrap.adapt import Contract, dress
from keyfold.export.wrap.exported import check_operators, loosened, unbounded
from keyfold.export.wrap.layout import Found, Sizes, check_names, find_layout
from keyfold.export.wrap.own_graph import (
    FLOATS,
    WHOLE,
    Names,
    WrapError,
    element,
    inputs_of,
    kept_dtype,
    read_graph,
    with_lengths,
)
from keyfold.export.wrap.proof import Claims, Proof, prove
from keyfold.export.wrap.settings import Request, read_request
from keyfold.export.wrap.step import Floats, Step
from keyfold.export.wrap.truth import Truth, draw_inputs, read_golden

LENGTHS = "keyfold_lengths"  # the input that with_lengths adds
MAX_STEPS = 512  # of one call, where several steps are proven
# A graph so large takes milliseconds a step: fewer are enough to wait for.
LARGE_BYTES, FEW_STEPS = 16 * 1024 * 1024, 64
OURS = ("x", "y", "lengths")


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A graph that keeps the contract, and its proof."""

    graph: bytes  # step.onnx
    states: tuple[StateSpec, ...]  # in its order
    max_steps: int  # of one call
    proof: Proof  # what was checked
    notes: tuple[str, ...]  # what was adapted, and what the owner should know


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    request = read_request(argv)
    path, wrapped = wrap(request)
    for note in wrapped.notes:
        print(f"note: {note}")
    proof = wrapped.proof
    print(
        f"proof: largest difference {proof.largest_difference:.2g} over {proof.steps:,} carried "
        f"steps (allowed {proof.allowed:.2g})"
    )
    print(f"bundle: {path}")
    print(f"next: keyfold-worker init {path}")
    return 0


def wrap(request: Request) -> tuple[Path, Wrapped]:
    """Write the bundle of somebody's model to out/<id>; return that path and what was found.

    Raises Crash, and leaves nothing behind, when the model cannot be adapted or proven.
    """
    x = _inputs(request)
    truths: list[Truth] = []
    if request.golden is not None:
        columns, outputs = len(request.features.columns), len(request.outputs.names)
        truths.append(read_golden(request.golden, columns, outputs))
    if request.model.suffix == ".keras" or request.parity is not None:
        # TensorFlow, which takes seconds to load.
        from keyfold.export.wrap.keras_model import parity, read_keras

        if request.parity is not None:
            truths.append(parity(request.parity, x, request.scaling))
        if request.model.suffix == ".keras":
            model, graph, own = read_keras(request, x)
            request = replace(request, graph=graph)
            wrapped = wrap_graph(model, request, x, [*truths, *own])
            return _write(request, wrapped), wrapped
    wrapped = wrap_graph(read_graph(request.model), request, x, truths)
    return _write(request, wrapped), wrapped


@dataclass(frozen=True, slots=True)
class Way:
    """A graph as it may be served."""

    model: Any  # ONNX
    names: Names  # in it
    found: Found  # its layout
    long: bool  # several steps a call, rows of different lengths


def wrap_graph(model: Any, request: Request, x: Floats, truths: Sequence[Truth]) -> Wrapped:
    """Dress a graph and prove it on inputs like `x` (B,T,F). Raises WrapError."""
    names = _names(model, request)
    sizes = Sizes(request.features.columns, request.outputs.names, request.graph.layout)
    check_names(model, names, sizes)
    check_operators(model, request.graph.max_steps is None)
    model = loosened(model)
    found = find_layout(model, names, sizes)
    free = unbounded(model)
    several = request.graph.max_steps is None and not free
    claims = Claims(
        long=True,
        whole=several and found.long,
        probabilities=request.outputs.kind == "classification",
        near=request.near,
        truths=tuple(truths),
    )
    reason = "as told" if request.graph.max_steps else "it takes no lengths of rows"
    if free:
        reason = f"{free} may be infinite between two events and come back, which nobody would see"
    way = _long_way(model, names, sizes, found) if several else None
    if way is not None:
        try:
            return _proven(way, request, x, claims)
        except WrapError as error:
            # What is wrong with the graph itself is said again below.
            reason = f"not with lengths: {error}"
    wrapped = _proven(Way(model, names, found, False), request, x, replace(claims, long=False))
    return replace(wrapped, notes=(*wrapped.notes, f"one step a call: {reason}"))


def _long_way(model: Any, names: Names, sizes: Sizes, found: Found) -> Way | None:
    """Return how the graph may run several steps of rows of different lengths; None: it cannot."""
    if not found.long:
        return None
    if names.lengths is not None:
        return Way(model, names, found, True)
    wired = with_lengths(model)
    if wired is None:
        return None
    named = replace(names, lengths=LENGTHS)
    try:
        found = find_layout(wired, named, sizes)
    except WrapError:
        return None
    return Way(wired, named, found, True) if found.long else None


def _proven(way: Way, request: Request, x: Floats, claims: Claims) -> Wrapped:
    states = _states(way, request)
    sizes = Contract(
        len(request.features.columns), len(request.outputs.names), states, request.scaling
    )
    graph = dress(way.model, way.names, way.found.layout, sizes)
    if len(graph) > LARGE_BYTES:
        x = x[:, :FEW_STEPS]
    proof = prove(Step.of(graph, states), x, claims)
    max_steps = MAX_STEPS if claims.long else 1
    return Wrapped(graph, states, max_steps, proof, (*_adapted(way), *proof.notes))


def _names(model: Any, request: Request) -> Names:
    """Complete the names that the owner gave by those that are left."""
    graph = request.graph
    before, after = ({pair[side] for pair in graph.states} for side in (0, 1))
    if len(inputs_of(model)) == 1:
        raise WrapError(
            "graph: expected an input for the event and one for every state, got "
            f"{', '.join(inputs_of(model))} alone: it keeps nothing from one call to the next; "
            "export a module that takes its states and returns them (PyTorch: forward(x, h, c) -> "
            "y, h, c)"
        )
    inputs = [name for name in inputs_of(model) if name not in {*before, graph.lengths}]
    outputs = [value.name for value in model.graph.output if value.name not in after]
    if not graph.states:
        raise WrapError(
            "--states: expected pairs IN:OUT of the graph's state tensors, such as h0:hn c0:cn, "
            f"got none; its inputs: {', '.join(inputs_of(model))}; its outputs: "
            f"{', '.join(value.name for value in model.graph.output)}"
        )
    unknown = sorted(set(graph.initial) - before)
    if unknown:
        raise WrapError(
            f"--initial {unknown[0]}: expected a state's input ({', '.join(sorted(before))}), got "
            "another name"
        )
    if not graph.x and len(inputs) != 1:
        raise WrapError(
            f"--x: expected the input that holds the event; left beside the states: "
            f"{', '.join(inputs) or 'none'}; name each of them in --x, --states or --lengths"
        )
    if not graph.y and not outputs:
        raise WrapError("--y: expected the output that holds the prediction, got states only")
    return Names(graph.x or inputs[0], graph.y or outputs[0], graph.states, graph.lengths or None)


def _states(way: Way, request: Request) -> tuple[StateSpec, ...]:
    inputs = inputs_of(way.model)
    return tuple(
        StateSpec(
            _free_name(before), _free_name(after), dims, kept_dtype(inputs[before]),
            float(request.graph.initial.get(before, 0.0)),
        )
        for (before, after), dims in zip(way.names.states, way.found.dims, strict=True)
    )  # fmt: skip


def _free_name(name: str) -> str:
    """Return a state's name in the bundle: the graph's own, where the contract has not taken it."""
    return f"state_{name}" if name in OURS or name.startswith(OWN_PREFIXES) else name


def _adapted(way: Way) -> list[str]:
    """Say what stands between the contract and the graph."""
    inputs, layout = inputs_of(way.model), way.found.layout
    notes = []
    if layout.x != "BTF":
        notes.append(f"x {way.names.x!r} has the order {layout.x} (B rows, T steps, F columns)")
    if layout.y != "BTO":
        notes.append(f"y {way.names.y!r} has the order {layout.y} (O outputs)")
    for (before, _), rows in zip(way.names.states, layout.rows, strict=True):
        if rows:
            notes.append(f"state {before!r} has its rows on axis {rows}: kept rows first")
    for name in (way.names.x, *(before for before, _ in way.names.states)):
        kind = {**FLOATS, **WHOLE}[element(inputs[name])]
        if kind == "float16" or (name == way.names.x and kind != "float32"):
            notes.append(f"{name!r} is {kind}: cast from float32 in front of the graph")
    if way.names.lengths == LENGTHS:
        notes.append("the recurrent operators take each row's number of steps from `lengths`")
    return notes


def _inputs(request: Request) -> Floats:
    """Return x (B,T,F) to prove the graph on, in the events' own units."""
    columns = len(request.features.columns)
    mean, deviation = np.zeros(columns), np.ones(columns)
    if request.scaling.mean:
        mean = np.array(request.scaling.mean)
    if request.scaling.deviation:
        deviation = np.array(request.scaling.deviation)
    if request.golden is not None:
        x = read_golden(request.golden, columns, len(request.outputs.names)).x
        mean, deviation = x.mean((0, 1), np.float64), x.std((0, 1), np.float64)
        deviation = np.where(deviation > 0, deviation, 1.0)
    return draw_inputs(mean, deviation)


def _write(request: Request, wrapped: Wrapped) -> Path:
    """Write, load and check the bundle beside its final place, then move it there."""
    manifest = Manifest(
        events=request.events,
        features=request.features,
        outputs=request.outputs,
        states=wrapped.states,
        step_sha256="",  # save fills it in
        min_rows=wrapped.proof.min_rows,
        max_steps=wrapped.max_steps,
        tolerance=wrapped.proof.tolerance,
        provenance=_provenance(request, wrapped),
    )
    request.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checking-", dir=request.out) as aside:
        saved = contract.save(Path(aside), manifest, wrapped.graph, wrapped.proof.golden)
        bundle = contract.load(saved)
        check_bundle(bundle)
        target = request.out / bundle.id
        if not target.exists():
            bundle.path.rename(target)
    return target


def _provenance(request: Request, wrapped: Wrapped) -> dict[str, Any]:
    proof = wrapped.proof
    return {
        "run": request.model.name,
        "wrapped": list(wrapped.notes),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parity": {
            "reference": proof.source,
            "largest_difference": proof.largest_difference,
            "allowed": proof.allowed,
            "carried_steps": proof.steps,
            "bit_identical_in_every_grouping": proof.identical,
        },
    }
