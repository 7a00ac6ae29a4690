"""keyfold-state adopt: takes partitions' states over as they are, under what is there now.

Owns what must hold before that may be offered, and what it means. Called by cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from keyfold.worker.config import Config
from keyfold.worker.emission import remembered
from keyfold.worker.errors import Crash
from keyfold.worker.state.consent import FOUND_PROBLEMS, OWNER_STOPS, asked, chosen, done
from keyfold.worker.state.reset import check_whole_topic
from keyfold.worker.state.store_admin import Admin
from keyfold.worker.state.survey import Place, Survey, survey
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import LAYOUT


def adopt(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Take states over under the present bundle, topic and log."""
    found = survey(config, admin)
    if found.recounted:
        raise Crash(
            f"{found.recounted}, so that states are where their events no longer come; nothing "
            "can be adopted: keyfold-state reset --all"
        )
    places = chosen(found, arguments)
    if arguments.all:
        places = [place for place in places if place.held is not None]
    if not places:
        raise Crash("no partition has a state to adopt")
    check_whole_topic(found, places if not arguments.all else found.places, "adopt")
    for place in places:
        _check(found, place)
        _check_sizes(found, admin, place)
    if not asked(_announced(found, places), arguments.yes):
        return FOUND_PROBLEMS
    for place in places:
        if not admin.adopt(
            config.kafka.input, place.number, place.meta("#M"), found.identity, place.resets
        ):
            raise Crash(
                f"partition {place.number}: its state changed meanwhile; look at it and ask again"
            )
    admin.set_topic(config.kafka.input, found.now)
    return done()


def _check(found: Survey, place: Place) -> None:
    where, held, extent = f"partition {place.number}", place.held, place.extent
    if held is None or held.watermark is None:
        raise Crash(f"{where}: expected a state to adopt, got none")
    if held.meta.get("#V") != LAYOUT:
        raise Crash(
            f"{where}: expected layout {LAYOUT}, got {held.meta.get('#V')}: keyfold-state rebuild"
        )
    if held.meta.get("#K") != str(held.states):
        raise Crash(
            f"{where}: expected {held.meta.get('#K')} key states, got {held.states}: "
            "keyfold-state rebuild or restore"
        )
    if not extent.start <= held.watermark <= extent.end:
        raise Crash(
            f"{where}: the state ends at offset {held.watermark}, the log goes from "
            f"{extent.start} to {extent.end}: the state cannot go on there; keyfold-state reset"
        )


def _check_sizes(found: Survey, admin: Admin, place: Place) -> None:
    more = remembered(found.bundle, found.config.emit)
    size = StateCodec(found.bundle.manifest, more).bytes_per_state
    # Behind a + stands the id of worker/emission.py's rule.
    or_rule = " or other [emit] settings'" * ("+" in found.identity + place.meta("#M"))
    for _, value in admin.sample(found.config.kafka.input, place.number):
        if len(value) != size:
            raise Crash(
                f"partition {place.number}: bundle {found.identity} asks for states of {size} "
                f"bytes, got {len(value)}: these are another model's{or_rule}; "
                "keyfold-state rebuild"
            )


def _announced(found: Survey, places: Sequence[Place]) -> Iterator[str]:
    other = exactly_once = False
    for place in places:
        held, bundle = place.held, place.meta("#M")
        other = other or bundle != found.identity
        exactly_once = exactly_once or bool(place.meta("#C"))
        yield (
            f"partition {place.number}: keeps {0 if held is None else held.states} key states "
            f"(folded up to offset {place.meta('#W')} by bundle {bundle}) for bundle "
            f"{found.identity}"
        )
    if other:
        yield (
            "The states have the size that this bundle asks for; whether its model understands "
            "them nobody can check."
        )
        yield "Until a key is cold again its predictions differ from the offline model's."
    if found.replaced:
        yield f"{found.replaced}: its records are taken for the old ones."
    yield "That the log still holds the last applied record is not checked again."
    if exactly_once:
        yield (
            "Exactly-once outputs: where the group offset is gone, predictions from the watermark "
            "on are emitted, some perhaps again."
        )
    yield OWNER_STOPS
