"""The store's scripts on a real Valkey: acquire, save by compare-and-set, load.

Every branch that a reply can take is here: begun, missing, other bundle or layout, moved, fenced,
lost, repeated. What the replies mean is worker/partition.py's business and tested there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
from memory_log import meta_of
from redis.exceptions import ConnectionError as AwayError
from redis.exceptions import NoPermissionError, ResponseError

from keyfold.worker.errors import NotOwner
from keyfold.worker.protocol import (
    Acquired,
    Beginning,
    Fence,
    Fingerprint,
    Held,
    Refused,
    SavePlan,
    Topic,
)
from keyfold.worker.state_codec import TOUCHED_AT
from keyfold.worker.store import META, Expired, Payload, Store, partition_name, pieces
from local.services import Valkey, ValkeyCluster

T = TypeVar("T")
On = Callable[[Callable[[Store], Awaitable[T]]], T]
LAST = Fingerprint(9, 5, 77)
NEW = {
    "#W": "42", "#B": "42", "#E": "1", "#O": "me", "#M": "bundle", "#L": "", "#V": "2", "#K": "0",
    "#S": "", "#F": "0", "#G": "", "#C": "", "#R": "0",
}  # fmt: skip


@pytest.fixture
def on(valkey: Valkey, unique_name: Callable[[str], str]) -> Callable[..., object]:
    """Return a function that runs a coroutine on a store with a group of its own."""

    def run(use: Callable[[Store], Awaitable[T]]) -> T:
        async def main() -> T:
            store = Store.connect(valkey.url, 5.0, unique_name("group"))
            try:
                return await use(store)
            finally:
                await store.close()

        return asyncio.run(main())

    return run


async def acquired(store: Store, begin: int | None = 0, nonce: str = "me") -> Fence:
    at = None if begin is None else Beginning(begin)
    reply = await store.acquire("t", 3, nonce, "bundle", at)
    assert isinstance(reply, Acquired)
    return reply.fence


async def save(store: Store, fence: Fence, w0: int, w1: int, states: Payload) -> Held:
    """Save, and see that the number of states says what is there."""
    held, _ = await store.save("t", 3, fence, SavePlan(w0, w1, LAST), states)
    assert held.keys == held.found
    return held


async def everything(store: Store) -> dict[bytes, bytes]:
    """Return the partition's whole hash."""
    return cast("dict[bytes, bytes]", await store.redis.hgetall(store.name("t", 3)))


async def meta(store: Store) -> dict[str, str]:
    return await meta_of(store, "t", 3)


def payload(count: int, size: int = 8, tag: bytes = b"") -> Payload:
    keys = [b"%b%d" % (tag, number) for number in range(count)]
    return Payload((), keys, [key.ljust(size, b".") for key in keys])


# -- acquire ---------------------------------------------------------------------------------------


def test_nothing_is_begun_unless_told(on: On[None]) -> None:
    async def use(store: Store) -> None:
        reply = await store.acquire("t", 3, "me", "bundle", None)
        assert reply == Refused("missing", "a watermark", "none")
        assert await meta(store) == {}

    on(use)


def test_begun_partition_holds_base_and_watermark_and_no_record(on: On[None]) -> None:
    async def use(store: Store) -> None:
        reply = await store.acquire("t", 3, "me", "bundle", Beginning(42))
        assert reply == Acquired(Fence(1, "me", "bundle"), 42, None)
        assert await meta(store) == {**NEW, "keys": "0"}
        assert set(META) == NEW.keys()

    on(use)


def test_every_acquire_takes_a_new_fence_and_leaves_the_rest(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store, 5)
        await store.save("t", 3, fence, SavePlan(5, 10, LAST, 77), payload(2))
        before = await everything(store)
        again = await store.acquire("t", 3, "you", "bundle", Beginning(999))
        assert again == Acquired(Fence(2, "you", "bundle"), 10, LAST, 77)
        assert await everything(store) == before | {b"#E": b"2", b"#O": b"you"}


def test_acquire_tells_all_that_was_kept(on: On[None]) -> None:
    async def use(store: Store) -> None:
        await acquired(store)
        kept: dict[Any, Any] = {"#F": 30, "#G": "3-5,20-90", "#R": 2, "#S": -7}
        await store.redis.hset(store.name("t", 3), mapping=kept)
        reply = await store.acquire("t", 3, "me", "bundle", None)
        assert reply == Acquired(
            Fence(2, "me", "bundle"), 0, None, -7, 30, ((3, 5), (20, 90)), None, 2
        )

    on(use)


def test_other_bundle_is_refused_and_changes_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        await acquired(store)
        before = await meta(store)
        reply = await store.acquire("t", 3, "you", "new", Beginning(0))
        assert reply == Refused("bundle", "new", "bundle", watermark=0, base=0)
        assert await meta(store) == before

    on(use)


@pytest.mark.parametrize("layout", ["1", "3", None])
def test_other_layout_is_refused_and_changes_nothing(on: On[None], layout: str | None) -> None:
    async def use(store: Store) -> None:
        await acquired(store)
        name = store.name("t", 3)
        if layout is None:
            await store.redis.hdel(name, "#V")
        else:
            await store.redis.hset(name, "#V", layout)
        before = await meta(store)
        reply = await store.acquire("t", 3, "you", "bundle", Beginning(0))
        assert reply == Refused("layout", "2", layout or "none")
        assert await meta(store) == before

    on(use)


def test_first_partition_count_is_kept_and_another_refused(on: On[None]) -> None:
    async def use(store: Store) -> None:
        assert await store.check_topic("t", Topic(4, "")) is None
        assert await store.check_topic("t", Topic(4, "")) is None
        assert await store.check_topic("t", Topic(8, "")) == Refused("partitions", "8", "4")
        assert await store.check_topic("other", Topic(8, "")) is None

    on(use)


def test_first_topic_id_is_kept_and_another_refused(on: On[None]) -> None:
    async def use(store: Store) -> None:
        assert await store.check_topic("t", Topic(4, "a")) is None
        assert await store.check_topic("t", Topic(4, "b")) == Refused("topic", "topic id b", "a")
        assert await store.topic("t") == Topic(4, "a")
        assert await store.check_topic("t", Topic(4, "")) is None  # a broker that tells none
        assert await store.check_topic("t", Topic(4, "a")) is None

    on(use)


def test_topic_id_is_noted_as_soon_as_a_broker_tells_it(on: On[None]) -> None:
    async def use(store: Store) -> None:
        assert await store.check_topic("t", Topic(4, "")) is None
        assert await store.topic("t") == Topic(4, "")
        assert await store.check_topic("t", Topic(4, "a")) is None
        assert await store.topic("t") == Topic(4, "a")

    on(use)


def test_partitions_topics_and_groups_never_share_a_name() -> None:
    names = {
        partition_name(group, topic, number)
        for group, topic, number in [("g", "t", 1), ("g", "t", 11), ("g", "t1", 1), ("g2", "t", 1)]
    }
    assert len(names) == 4
    assert partition_name("g", "t", 1) == "{g:t:1}"  # one slot of a Redis Cluster


# -- save ------------------------------------------------------------------------------------------


def test_save_writes_states_watermark_and_fingerprint_together(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        held = await save(store, fence, 0, 10, payload(3))
        assert held == Held(10, 1, "me", "bundle", 3, 3)
        loaded = await store.load("t", 3, [b"0", b"none", b"2"])
        assert loaded.held == held
        assert loaded.values == [b"0.......", None, b"2......."]
        assert (await meta(store))["#L"] == str(LAST)

    on(use)


def test_save_from_another_watermark_changes_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(1))
        held = await save(store, fence, 5, 20, payload(2, tag=b"x"))
        assert held == Held(10, 1, "me", "bundle", 1, 1)
        assert (await store.load("t", 3, [b"x0"])).values == [None]

    on(use)


def test_save_under_an_old_fence_changes_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        old = await acquired(store)
        await acquired(store, nonce="you")
        for fence in (old, replace(old, number=2), replace(old, nonce="you")):
            held = await save(store, fence, 0, 10, payload(1))
            assert held == Held(0, 2, "you", "bundle")
        wrong = Fence(2, "you", "other")
        assert (await save(store, wrong, 0, 10, payload(1))).watermark == 0
        assert (await store.load("t", 3, [b"0"])).values == [None]

    on(use)


def test_save_into_a_lost_hash_creates_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.redis.delete(store.name("t", 3))
        held, _ = await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(1))
        assert (held.watermark, held.number, held.nonce) == (None, 0, "")
        assert not await store.redis.exists(store.name("t", 3))

    on(use)


def test_save_repeated_after_a_lost_reply_reads_as_done(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        plan = SavePlan(0, 10, LAST)
        first = await store.save("t", 3, fence, plan, payload(2))
        assert await store.save("t", 3, fence, plan, payload(2)) == first

    on(use)


@pytest.mark.parametrize("count", [499, 500, 501, 1000, 1001, 4001, 20_000])
def test_save_of_many_keys_is_whole(on: On[None], count: int) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        states = payload(count)
        held = await save(store, fence, 0, 10, states)
        assert held.watermark == 10
        assert (await meta(store))["keys"] == str(count)
        read = [(await store.load("t", 3, some)).values for some in pieces(states.keys)]
        assert [value for some in read for value in some] == list(states.values)

    on(use)


@pytest.mark.parametrize("count", [1, 1000, 1001, 5000])
def test_cleared_keys_are_gone_and_the_others_stay(on: On[None], count: int) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        states = payload(count + 1)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST), states)
        cleared = replace(payload(3, tag=b"new"), cleared=states.keys[:count])
        assert (await save(store, fence, 10, 11, cleared)).watermark == 11
        assert (await meta(store))["keys"] == "4"
        last = [states.keys[-1], states.keys[0], b"new2"]
        assert (await store.load("t", 3, last)).values == [states.values[-1], None, b"new2...."]

    on(use)


def test_clearing_a_key_that_was_never_stored_is_no_error(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        held = await save(store, fence, 0, 1, Payload((b"k",), (), ()))
        assert held.watermark == 1

    on(use)


def test_save_without_states_moves_the_watermark(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        held = await save(store, fence, 0, 7, Payload((), (), ()))
        assert held.watermark == 7

    on(use)


def test_save_of_eight_megabytes_is_whole(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        states = payload(130, 64 * 1024)
        held = await save(store, fence, 0, 10, states)
        assert held.watermark == 10
        assert (await store.load("t", 3, states.keys)).values == list(states.values)

    on(use)


def test_any_bytes_are_a_key_and_none_is_a_meta_field(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        keys = [b"", b"#W", b":", b"\x00\xff", b"#E", b"k" * 10_000]
        values = [b"v%d" % number for number in range(len(keys))]
        held = await save(store, fence, 0, 10, Payload((), keys, values))
        assert held == Held(10, 1, "me", "bundle", len(keys), len(keys))
        assert (await store.load("t", 3, keys)).values == values

    on(use)


def test_name_that_holds_something_else_is_an_error_and_stays(on: On[None]) -> None:
    async def use(store: Store) -> None:
        name = store.name("t", 3)
        await store.redis.set(name, "text")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await store.acquire("t", 3, "me", "bundle", Beginning(0))
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await store.save("t", 3, Fence(1, "me", "b"), SavePlan(0, 1, None), payload(1))
        assert await store.redis.get(name) == b"text"

    on(use)


def test_states_and_watermark_vanish_together(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(3))
        names = [name async for name in store.redis.scan_iter(match=f"{{{store._group}:t:3}}*")]
        assert names == [store.name("t", 3).encode()]  # one name holds it all
        await store.redis.delete(names[0])
        loaded = await store.load("t", 3, [b"0"])
        assert (loaded.held.watermark, loaded.values) == (None, [None])
        assert await store.hold("t", 3) == loaded.held

    on(use)


def test_load_sees_states_and_watermark_of_one_instant(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        keys = [b"%d" % number for number in range(2000)]

        async def save() -> None:
            for w in range(200):
                states = Payload((), keys, [b"%d" % (w + 1)] * len(keys))
                await store.save("t", 3, fence, SavePlan(w, w + 1, LAST), states)

        saving = asyncio.create_task(save())
        seen = set()
        while not saving.done():
            loaded = await store.load("t", 3, keys)
            if loaded.held.watermark:
                assert set(loaded.values) == {b"%d" % loaded.held.watermark}
            seen.add(loaded.held.watermark)
        await saving
        assert len(seen) > 1

    on(use)


# -- the number of states --------------------------------------------------------------------------


def test_number_of_states_is_kept_through_every_kind_of_save(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        steps = [
            (payload(5), 5),
            (payload(5), 5),  # the same keys again
            (payload(8), 8),
            (Payload((b"0", b"none"), (b"x",), (b"v",)), 8),
            (Payload((b"x", b"x"), (), ()), 7),
            (Payload((), (), ()), 7),
            (replace(payload(2000, tag=b"n"), cleared=payload(8).keys), 2000),
        ]
        for w, (states, there) in enumerate(steps):
            held = await save(store, fence, w, w + 1, states)
            assert (held.keys, held.found) == (there, there)
            assert (await meta(store))["#K"] == str(there)
            repeated, _ = await store.save("t", 3, fence, SavePlan(w, w + 1, LAST), states)
            assert repeated == held

    on(use)


async def lose_or_add(store: Store, change: str) -> None:
    """Change a partition's states behind its owner's back."""
    if change == "lost":
        assert await store.redis.hdel(store.name("t", 3), ":1")
    else:
        assert await store.redis.hset(store.name("t", 3), ":more", "v")


@pytest.mark.parametrize(("change", "found"), [("lost", 2), ("added", 4)])
def test_no_fence_is_taken_where_the_number_of_states_is_wrong(
    on: On[None], change: str, found: int
) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await save(store, fence, 0, 10, payload(3))
        await lose_or_add(store, change)
        before = await everything(store)
        for begin in (None, Beginning(0)):
            reply = await store.acquire("t", 3, "you", "bundle", begin)
            assert reply == Refused("states", "3", str(found))
        assert await everything(store) == before

    on(use)


@pytest.mark.parametrize(("change", "found"), [("lost", 2), ("added", 4)])
def test_nothing_is_saved_where_the_number_of_states_is_wrong(
    on: On[None], change: str, found: int
) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await save(store, fence, 0, 10, payload(3))
        await lose_or_add(store, change)
        before = await everything(store)
        # Not even a save that would make the number right again.
        for states in (payload(2, tag=b"x"), payload(3), Payload((b"more",), (), ())):
            held, _ = await store.save("t", 3, fence, SavePlan(10, 20, LAST), states)
            assert held == Held(10, 1, "me", "bundle", 3, found)
        assert await everything(store) == before
        assert await store.hold("t", 3) == Held(10, 1, "me", "bundle", 3, found)

    on(use)


# -- begin anew ------------------------------------------------------------------------------------

ANEW = Fence(0, "you", "new")


async def refused_for_its_bundle(store: Store, states: int = 3) -> Refused:
    """Save under one bundle and try to acquire with another."""
    fence = await acquired(store, 4)
    await store.save("t", 3, fence, SavePlan(4, 10, LAST, 77), payload(states))
    reply = await store.acquire("t", 3, "you", "new", None)
    assert reply == Refused("bundle", "new", "bundle", watermark=10, base=4)
    return reply


def test_states_of_another_bundle_make_room_and_nothing_is_emitted_again(on: On[None]) -> None:
    async def use(store: Store) -> None:
        refused = await refused_for_its_bundle(store)
        extra: dict[Any, Any] = {"#C": 12, "#R": 3, "#G": "5-7"}
        await store.redis.hset(store.name("t", 3), mapping=extra)
        store._exactly_once = "1"
        reply = await store.begin_anew("t", 3, ANEW, refused, 4)
        assert reply == Acquired(Fence(2, "you", "new"), 4, None, floor=10, committed=12, resets=3)
        assert await meta(store) == NEW | {
            "#W": "4", "#B": "4", "#E": "2", "#O": "you", "#M": "new", "#F": "10", "#C": "12",
            "#R": "3", "keys": "0",
        }  # fmt: skip

    on(use)


def test_former_owner_stops_once_the_states_began_anew(on: On[None]) -> None:
    async def use(store: Store) -> None:
        refused = await refused_for_its_bundle(store)
        await store.begin_anew("t", 3, ANEW, refused, 10)
        old = Fence(1, "me", "bundle")
        held, _ = await store.save("t", 3, old, SavePlan(10, 20, LAST), payload(1))
        assert held == Held(10, 2, "you", "new")

    on(use)


def test_emit_floor_never_falls(on: On[None]) -> None:
    # b1 at 10; b2 rebuilds from 4 and is at 6 when b3 joins: 6 to 9 must not be emitted again.
    async def use(store: Store) -> None:
        await store.begin_anew("t", 3, ANEW, await refused_for_its_bundle(store), 4)
        await store.save("t", 3, Fence(2, "you", "new"), SavePlan(4, 6, LAST), payload(1))
        refused = await store.acquire("t", 3, "him", "newer", None)
        assert isinstance(refused, Refused)
        reply = await store.begin_anew("t", 3, Fence(0, "him", "newer"), refused, 4)
        assert isinstance(reply, Acquired)
        assert reply.floor == 10

    on(use)


@pytest.mark.parametrize("at", [10**14, 2**53 - 1])
def test_large_offsets_stay_exact(on: On[None], at: int) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store, at - 5)
        held = await save(store, fence, at - 5, at, payload(1))
        assert held.watermark == at
        refused = await store.acquire("t", 3, "you", "new", None)
        assert isinstance(refused, Refused)
        reply = await store.begin_anew("t", 3, ANEW, refused, at)
        assert isinstance(reply, Acquired)
        assert (reply.watermark, reply.floor) == (at, at)

    on(use)


def test_states_that_moved_since_they_were_refused_are_left_alone(on: On[None]) -> None:
    async def use(store: Store) -> None:
        refused = await refused_for_its_bundle(store)
        await save(store, Fence(1, "me", "bundle"), 10, 11, payload(1))
        before = await everything(store)
        reply = await store.begin_anew("t", 3, ANEW, refused, 4)
        assert reply == Refused("bundle", "new", "bundle", watermark=11)
        assert await everything(store) == before

    on(use)


def test_states_that_another_worker_began_anew_meanwhile_are_left_alone(on: On[None]) -> None:
    async def use(store: Store) -> None:
        refused = await refused_for_its_bundle(store)
        await store.begin_anew("t", 3, Fence(0, "first", "new"), refused, 4)
        before = await everything(store)
        reply = await store.begin_anew("t", 3, ANEW, refused, 4)
        assert isinstance(reply, Refused)
        assert (reply.what, reply.got) == ("bundle", "new")
        assert await everything(store) == before

    on(use)


def test_states_that_vanished_meanwhile_are_not_begun_anew(on: On[None]) -> None:
    async def use(store: Store) -> None:
        refused = await refused_for_its_bundle(store)
        await store.redis.delete(store.name("t", 3))
        reply = await store.begin_anew("t", 3, ANEW, refused, 4)
        assert reply == Refused("bundle", "new", "none")
        assert await everything(store) == {}

    on(use)


# -- lost ranges -----------------------------------------------------------------------------------


def test_lost_range_is_remembered_and_the_watermark_is_behind_it(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST, 77), payload(3))
        first = Acquired(fence, 10, LAST, 77)
        after = await store.skip_lost("t", 3, first, 15)
        assert after == Acquired(fence, 15, None, 77, lost=((10, 15),))
        assert (await meta(store))["keys"] == "3"
        assert await save(store, fence, 15, 20, payload(1)) == Held(20, 1, "me", "bundle", 3, 3)
        again = await store.skip_lost("t", 3, replace(first, watermark=20), 21)
        assert isinstance(again, Acquired)
        assert again.lost == ((10, 15), (20, 21))
        assert again.lost_upto == 21
        assert (await meta(store))["#G"] == "10-15,20-21"

    on(use)


@pytest.mark.parametrize("moved", ["owner", "watermark", "gone"])
def test_lost_range_is_skipped_by_the_owner_only_and_only_from_where_it_was(
    on: On[None], moved: str
) -> None:
    async def use(store: Store) -> None:
        first = Acquired(await acquired(store), 0, None)
        if moved == "owner":
            await acquired(store, nonce="you")
        elif moved == "watermark":
            await save(store, first.fence, 0, 5, payload(1))
        else:
            await store.redis.delete(store.name("t", 3))
        before = await everything(store)
        with pytest.raises(NotOwner, match="expected owner 1/me, got"):
            await store.skip_lost("t", 3, first, 15)
        assert await everything(store) == before

    on(use)


# -- exactly-once outputs --------------------------------------------------------------------------


def test_group_offset_is_noted_with_each_save_of_exactly_once_outputs_only(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await save(store, fence, 0, 10, payload(1))
        assert (await meta(store))["#C"] == ""
        store._exactly_once = "1"
        await save(store, fence, 10, 20, payload(1))
        reply = await store.acquire("t", 3, "me", "bundle", None)
        assert isinstance(reply, Acquired)
        assert reply.committed == 20
        # Outputs that went out at least once since: what a transaction had set says nothing now.
        store._exactly_once = "0"
        reply = await store.acquire("t", 3, "me", "bundle", None)
        assert isinstance(reply, Acquired)
        assert reply.committed is None

    on(use)


# -- expiry ----------------------------------------------------------------------------------------


def touched(key: bytes, at_ms: int) -> bytes:
    """Return as much of a stored state as the scan looks at."""
    return b"\x02".ljust(TOUCHED_AT, b".") + at_ms.to_bytes(8, "little", signed=True) + key


async def collect(store: Store, fence: Fence, w: int, oldest_ms: int, fields: int) -> int:
    """Save nothing but W again and again until the scan has seen the whole hash once."""
    cursor = 0
    while True:
        payload = Payload((), (), (), Expired(oldest_ms, cursor, fields))
        held, cursor = await store.save("t", 3, fence, SavePlan(w, w + 1, LAST), payload)
        assert held.watermark == w + 1
        assert held.keys == held.found
        w += 1
        if cursor == 0:
            return w


@pytest.mark.parametrize("count", [1, 100, 20_000])
def test_expired_states_are_gone_after_enough_saves_and_live_ones_stay(
    on: On[None], count: int
) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        keys = [b"%d" % number for number in range(count)]
        values = [touched(key, number % 7 - 3) for number, key in enumerate(keys)]
        w = 0
        for some in pieces(range(count), 5000):
            states = Payload((), [keys[i] for i in some], [values[i] for i in some])
            await save(store, fence, w, w + 1, states)
            w += 1
        w = await collect(store, fence, w, 0, 400)
        left = {field[1:] for field in await everything(store) if field.startswith(b":")}
        assert left == {key for number, key in enumerate(keys) if number % 7 - 3 >= 0}
        assert (await meta(store))["#K"] == str(len(left))
        assert isinstance(await store.acquire("t", 3, "me", "bundle", None), Acquired)

    on(use)


def test_one_save_looks_at_no_more_than_its_share_of_a_large_hash(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        keys = [b"%d" % number for number in range(5000)]
        await save(store, fence, 0, 1, Payload((), keys, [touched(key, 0) for key in keys]))
        expired = Payload((), (), (), Expired(1, 0, 200))
        held, cursor = await store.save("t", 3, fence, SavePlan(1, 2, LAST), expired)
        assert 5000 - 600 < held.found < 5000
        assert held.keys == held.found
        assert cursor != 0

    on(use)


def test_exactly_the_states_older_than_the_limit_are_collected(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        times = {b"a": 99, b"b": 100, b"c": 101, b"d": -(2**50), b"e": 2**50}
        states = Payload((), list(times), [touched(*item) for item in times.items()])
        await save(store, fence, 0, 1, states)
        await collect(store, fence, 1, 100, 10)
        left = {field[1:] for field in await everything(store) if field.startswith(b":")}
        assert left == {b"b", b"c", b"e"}

    on(use)


def test_save_writes_and_clears_and_collects_at_once(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        before = [b"old", b"live", b"cleared"]
        await save(store, fence, 0, 1, Payload((), before, [touched(k, 5) for k in before]))
        now = Payload(
            (b"cleared",), (b"live", b"new", b"late"),
            (touched(b"live", 50), touched(b"new", 50), touched(b"late", 5)), Expired(10, 0, 100),
        )  # fmt: skip
        # "late" was stepped early in what this save covers and is expired at its end.
        assert (await save(store, fence, 1, 2, now)).found == 2
        loaded = await store.load("t", 3, [b"old", b"cleared", b"late", b"live", b"new"])
        assert [value is None for value in loaded.values] == [True, True, True, False, False]

    on(use)


def test_save_that_is_refused_collects_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await save(store, fence, 0, 1, Payload((), (b"k",), (touched(b"k", 5),)))
        late = Payload((), (), (), Expired(10, 0, 100))
        held, cursor = await store.save("t", 3, fence, SavePlan(0, 1, LAST), late)
        assert (held.watermark, held.found, cursor) == (1, 1, 0)  # a repeated save
        held, _ = await store.save("t", 3, replace(fence, number=9), SavePlan(1, 2, LAST), late)
        assert held.found == 1

    on(use)


def test_meta_fields_never_expire(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        name = store.name("t", 3)
        await store.redis.hset(name, "#M", touched(b"", 0))
        fence = replace(fence, bundle=touched(b"", 0).decode())
        await save(store, fence, 0, 1, Payload((), (), (), Expired(2**52, 0, 100)))
        assert len(await everything(store)) == len(META)

    on(use)


# -- a full Redis ----------------------------------------------------------------------------------


def test_save_that_a_full_redis_refuses_changes_nothing_and_succeeds_when_there_is_room(
    own_valkey: Valkey,
) -> None:
    async def main() -> None:
        store = Store.connect(own_valkey.url, 5.0, "g")
        fence = await acquired(store)
        await save(store, fence, 0, 10, payload(3000, 100))
        before = await everything(store)
        await store.redis.config_set("maxmemory", "1mb")
        full = [
            replace(payload(3000, 200), cleared=[b"0"]),
            payload(2, tag=b"x"),
            Payload((), (), ()),
            Payload((), (), (), Expired(2**52, 0, 10)),
        ]
        for states in full:
            with pytest.raises(ResponseError, match=r"OOM|out of memory|maxmemory"):
                await store.save("t", 3, fence, SavePlan(10, 20, LAST), states)
            assert await everything(store) == before
        with pytest.raises(ResponseError, match=r"OOM|out of memory|maxmemory"):
            await store.acquire("t", 3, "you", "bundle", None)
        assert await everything(store) == before
        await store.redis.config_set("maxmemory", "0")
        held = await save(store, fence, 10, 20, full[0])
        assert held == Held(20, 1, "me", "bundle", 2999, 2999)
        await store.close()

    asyncio.run(main())


# -- the rest --------------------------------------------------------------------------------------


def test_cancelled_load_never_leaves_its_reply_to_another(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        states = payload(3000, 100)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST), states)
        for number in range(100):
            cut = asyncio.create_task(store.load("t", 3, states.keys))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            cut.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cut
            key = states.keys[number]
            assert (await store.load("t", 3, [key])).values == [states.values[number]]

    on(use)


def test_many_commands_at_once_find_a_connection(on: On[None]) -> None:
    # One worker may own hundreds of partitions, each with a load and a save at the same time.
    async def use(store: Store) -> None:
        await acquired(store)
        replies = await asyncio.gather(*(store.hold("t", 3) for _ in range(300)))
        assert {reply.watermark for reply in replies} == {0}

    on(use)


def test_eviction_policy_that_loses_states_is_named(own_valkey: Valkey) -> None:
    async def main() -> None:
        store = Store.connect(own_valkey.url, 5.0, "g")
        assert await store.policy_problems() == []
        await store.redis.config_set("maxmemory-policy", "allkeys-lru")
        assert await store.policy_problems() == [
            "Redis may evict states: expected maxmemory-policy noeviction, got allkeys-lru"
        ]
        await store.close()

    asyncio.run(main())


def policy_problems(store_url: str) -> list[str]:
    async def main() -> list[str]:
        store = Store.connect(store_url, 2.0, "g")
        try:
            return await store.policy_problems()
        finally:
            await store.close()

    return asyncio.run(main())


def test_settings_are_asked_of_the_nodes_that_are_there() -> None:
    # A worker that starts joins then: partitions on the other nodes are all that can be served.
    with ValkeyCluster() as cluster:
        cluster.nodes[2].says("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        for number in (0, 1):
            cluster.kill(number)
            assert policy_problems(cluster.url) == [
                "Redis may evict states: expected maxmemory-policy noeviction, got allkeys-lru"
            ]
        cluster.kill(2)
        with pytest.raises(AwayError):
            policy_problems(cluster.url)


def test_a_node_that_refuses_is_told_though_the_others_answer() -> None:
    with ValkeyCluster() as cluster:
        cluster.nodes[1].says("ACL", "SETUSER", "default", "-info")
        with pytest.raises(NoPermissionError):
            policy_problems(cluster.url)


def test_pieces_cover_everything_in_order() -> None:
    assert list(pieces([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(pieces([], 2)) == []
