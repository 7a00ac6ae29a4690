"""keyfold-state reset: gives partitions' states up and begins anew.

Owns where it begins and what becomes of the outputs; the replacing is store_admin.py's.
Called by cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence, Set

from keyfold.worker.config import Config
from keyfold.worker.errors import Crash
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.kafka.log import Extent
from keyfold.worker.state.consent import FOUND_PROBLEMS, OWNER_STOPS, asked, chosen, done
from keyfold.worker.state.store_admin import Admin, Emission, new_meta
from keyfold.worker.state.survey import Place, Survey, survey


def reset(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Drop partitions' states and begin anew at --to."""
    found = survey(config, admin)
    places = chosen(found, arguments)
    check_whole_topic(found, places, "reset")
    again = not config.worker.exactly_once or arguments.emit_again
    # In another log than the one that was served, what is out says nothing of these events.
    others = {p.number for p in places if found.replaced or _is_beyond_the_log(p)}
    anew = {place.number for place in places if again} | others
    begins = {place.number: _begin(arguments.to, place.extent) for place in places}
    _check_outputs_known([place for place in places if place.number not in anew])
    lines = list(_announced(found, places, begins, anew))
    if others:
        lines.append(
            "The log is another one: its offsets, and so the ids of its predictions, begin anew. "
            "Name another output topic (kafka.output) or make it anew, or it holds two predictions "
            "of one id."
        )
    if not asked(lines, arguments.yes):
        return FOUND_PROBLEMS
    for place in places:
        meta = new_meta(begins[place.number], found.identity)
        # Else predictions of events before the former base, never made, would be looked for.
        floor = 0 if place.number in anew else place.out_upto or 0
        emission = Emission(floor, anew=place.number in anew, resets=place.resets)
        admin.install(config.kafka.input, place.number, meta, emission)
        if place.number in others:
            _forget_seams(config, admin, place.number)
    if len(places) == len(found.places):
        admin.forget_topic(config.kafka.input)
    return done()


def _forget_seams(config: Config, admin: Admin, number: int) -> None:
    """Let whoever has the outputs have them from the new log's beginning on."""
    records = HandoverAdmin(admin.redis, config.kafka.input, config.kafka.output)
    record = records.read(number)
    if record.revision:
        records.swap(number, record, record.of_another_log())


def check_whole_topic(found: Survey, places: Sequence[Place], command: str) -> None:
    """Refuse to do to one partition what the whole topic needs. Raises Crash."""
    why = found.recounted or found.replaced
    if why and len(places) < len(found.places):
        raise Crash(f"{why}; this concerns every partition: keyfold-state {command} --all")


def offset_at(option: str, text: str, extent: Extent) -> int:
    """Return the offset that earliest, latest or a number names. Raises Crash."""
    named = {"earliest": extent.start, "latest": extent.end}
    try:
        offset = named[text] if text in named else int(text)
    except ValueError:
        raise Crash(f"{option}: expected earliest, latest or an offset, got {text!r}") from None
    if not extent.start <= offset <= extent.end:
        raise Crash(
            f"{option}: expected an offset from {extent.start} to {extent.end}, got {offset}"
        )
    return offset


def _is_beyond_the_log(place: Place) -> bool:
    """Say whether something was folded or emitted that the log does not hold (any more)."""
    return max(place.watermark or 0, place.out_upto or 0) > place.extent.end


def _begin(to: str, extent: Extent) -> int:
    return offset_at("--to", to, extent)


def _check_outputs_known(places: Sequence[Place]) -> None:
    for place in places:
        if place.meta("#C") and place.out_upto is None:
            raise Crash(
                f"partition {place.number}: exactly-once outputs: the group offset is gone or not "
                f"the worker's own (expected at least {place.meta('#C')}), so nobody knows which "
                "predictions are out; --emit-again emits them (again)"
            )


def _announced(
    found: Survey, places: Sequence[Place], begins: Mapping[int, int], anew: Set[int]
) -> Iterator[str]:
    for place in places:
        states = 0 if place.held is None else place.held.states
        yield (
            f"partition {place.number}: drops {states} key states (folded up to offset "
            f"{place.meta('#W', '-')}), begins anew at offset {begins[place.number]} with bundle "
            f"{found.identity}"
        )
        upto = place.out_upto
        out = place.number not in anew and upto is not None and upto > begins[place.number]
        if out and upto is not None:
            yield (
                f"partition {place.number}: predictions up to offset {upto - 1} stay as they are; "
                "none is emitted about offsets below"
            )
    if anew:
        yield (
            "Every key starts cold; predictions from there on are emitted again, under the same "
            "ids."
        )
    else:
        yield (
            "Every key starts cold; with exactly-once outputs no prediction is emitted twice "
            "(--emit-again does)."
        )
    if len(places) == len(found.places):
        yield "The topic's id and number of partitions are noted anew."
    yield OWNER_STOPS
