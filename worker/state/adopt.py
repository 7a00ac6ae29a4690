"""keyfold-state adopt: takes partitions' states over as they are, under what is there now.

Owns what must hold before that may be offered, and what it means. Another bundle's states are taken
over only with --inherit, and only by a fine-tune of that bundle: any other model would read numbers
that mean nothing to it, and nobody could tell afterwards. And only with at-least-once outputs: a
transaction under way, or one behind a save that is not due yet, moves what is out beyond the state
at any moment, also after it was looked at, and what is out is never predicted again: the child
would fold it silently, though the parent predicted it. Called by cli.py; inherit.py checks states
here too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.lineage import check_inherits
from keyfold.worker.config import Config
from keyfold.worker.emission import remembered
from keyfold.worker.errors import Crash
from keyfold.worker.state.consent import FOUND_PROBLEMS, OWNER_STOPS, asked, chosen, done
from keyfold.worker.state.inherited import go_on
from keyfold.worker.state.reset import check_whole_topic
from keyfold.worker.state.store_admin import Admin
from keyfold.worker.state.survey import Place, Survey, survey
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import LAYOUT

INHERITANCE = (
    "Predictions from there on are those of the new bundle run from its parent's states, not from "
    "a key's first event.",
    "keyfold-verify checks them with --parent and the parent's bundle: keep it.",
)


def adopt(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Take states over under the present topic and log, with --inherit under a fine-tune."""
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
        check(place)
    if arguments.inherit is not None:
        return _inherit(admin, (found, places), contract.load(arguments.inherit), arguments.yes)
    for place in places:
        _check_identity(found, place)
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


def _inherit(admin: Admin, what: tuple[Survey, Sequence[Place]], parent: Bundle, yes: bool) -> int:
    """Give partitions' states to a fine-tune of the bundle that has folded them."""
    found, places = what
    _check_at_least_once(found, places)
    check_inherits(found.bundle, parent)
    if found.replaced:
        raise Crash(f"{found.replaced}: adopt the states with bundle {parent.id} first")
    places = [place for place in places if place.meta("#M") != found.identity]
    if not places:
        raise Crash(f"bundle {found.identity} has these states already")
    for place in places:
        check_folded_by(place, parent, found.identity)
        _check_all_is_saved(place)
        _check_sizes(found, admin, place)
    if not asked(_inheritance(found, places), yes):
        return FOUND_PROBLEMS
    for place in places:
        held = place.held
        if held is None or not go_on(
            admin, found.config.kafka.input, place.number, held, found.identity
        ):
            raise Crash(
                f"partition {place.number}: its state changed meanwhile: stop its worker (SIGTERM) "
                "and ask again"
            )
    return done()


def _check_identity(found: Survey, place: Place) -> None:
    """Refuse another bundle's states, and those of other [emit] settings. Raises Crash."""
    held, where = place.meta("#M"), f"partition {place.number}"
    bundle, own = held.partition("+")[0], found.identity.partition("+")[0]
    if bundle != own:
        raise Crash(
            f"{where}: expected states of bundle {own}, got those of {bundle}: another bundle's "
            "are warmed up anew by replay (keyfold-state rebuild, or a new group); only a "
            f"fine-tune of it may go on with them: --inherit bundles/{bundle}"
        )
    if held != found.identity:
        raise Crash(
            f"{where}: expected states of {found.identity}, got those of {held}: they were kept "
            "under other [emit] settings (behind the +): keyfold-state rebuild"
        )


def check_folded_by(place: Place, parent: Bundle, identity: str) -> None:
    """See that a partition's states are the parent's, by the same [emit] rule. Raises Crash."""
    held, where = place.meta("#M"), f"partition {place.number}"
    (bundle, _, rule), (_, _, wanted) = held.partition("+"), identity.partition("+")
    if bundle != parent.id:
        raise Crash(f"{where}: expected states of bundle {parent.id}, got those of {bundle}")
    if rule != wanted:
        raise Crash(
            f"{where}: expected the [emit] settings under which the states were kept, "
            f"{rule or 'none that remember'}, got {wanted or 'none that remember'}"
        )


def _check_at_least_once(found: Survey, places: Sequence[Place]) -> None:
    """Refuse where outputs go, or went last, out in transactions. Raises Crash."""
    named = found.config.worker.exactly_once
    if named or any(place.meta("#C") for place in places):
        where = "worker.outputs" if named else "the states' last owner"
        raise Crash(
            f"--inherit: expected at-least-once outputs, got exactly-once ({where}): what is out "
            "may move beyond the states at any moment, and stays the parent's; begin a new group "
            "with them: keyfold-state inherit OLD.toml NEW.toml, then handover OLD.toml NEW.toml"
        )


def _check_all_is_saved(place: Place) -> None:
    """Refuse where the parent's predictions beyond the watermark are out already."""
    out = place.out_upto
    if out is not None and place.watermark is not None and out > place.watermark:
        raise Crash(
            f"partition {place.number}: expected all that is out to be saved, got predictions up "
            f"to offset {out - 1} and a state up to {place.watermark}: run the parent's worker "
            "until it has caught up, stop it (SIGTERM) and ask again"
        )


def check(place: Place) -> None:
    """Refuse a state that no worker could go on with. Raises Crash."""
    where, held, extent = f"partition {place.number}", place.held, place.extent
    if held is None or held.watermark is None:
        raise Crash(f"{where}: expected a state to adopt, got none")
    if held.meta.get("#V") != LAYOUT:
        raise Crash(
            f"{where}: expected layout {LAYOUT}, got {held.meta.get('#V')}: keyfold-state rebuild"
        )
    if held.meta.get("#K") != str(held.counted):
        raise Crash(
            f"{where}: expected {held.meta.get('#K')} key states, got {held.counted}: "
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
    exactly_once = False
    for place in places:
        held = place.held
        exactly_once = exactly_once or bool(place.meta("#C"))
        yield (
            f"partition {place.number}: keeps {0 if held is None else held.states} key states "
            f"(folded up to offset {place.meta('#W')} by bundle {place.meta('#M')})"
        )
    if found.replaced:
        yield f"{found.replaced}: its records are taken for the old ones."
    yield "That the log still holds the last applied record is not checked again."
    if exactly_once:
        yield (
            "Exactly-once outputs: where the group offset is gone, predictions from the watermark "
            "on are emitted, some perhaps again."
        )
    yield OWNER_STOPS


def _inheritance(found: Survey, places: Sequence[Place]) -> Iterator[str]:
    for place in places:
        yield (
            f"partition {place.number}: bundle {found.identity} goes on at offset "
            f"{place.meta('#W')} with {0 if place.held is None else place.held.states} key states "
            f"of its parent {place.meta('#M')}"
        )
    yield from INHERITANCE
    yield (
        "Stop the parent's worker first (SIGTERM): what it emits and has not saved is predicted "
        "again, by the new bundle."
    )
    yield OWNER_STOPS
