"""The store's scripts on a real Valkey: acquire, save by compare-and-set, load.

Every branch that a reply can take is here: begun, missing, other bundle or layout, moved, fenced,
lost, repeated. What the replies mean is worker/partition.py's business and tested there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from redis.exceptions import ResponseError

from keyfold.worker.partition import Acquired, Fence, Fingerprint, Held, Refused, SavePlan
from keyfold.worker.store import Payload, Store, partition_name, pieces
from local.services import Valkey

T = TypeVar("T")
On = Callable[[Callable[[Store], Awaitable[T]]], T]
LAST = Fingerprint(9, 5, 77)


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
    reply = await store.acquire("t", 3, nonce, "bundle", begin)
    assert isinstance(reply, Acquired)
    return reply.fence


def payload(count: int, size: int = 8, tag: bytes = b"") -> Payload:
    keys = [b"%b%d" % (tag, number) for number in range(count)]
    return Payload((), keys, [key.ljust(size, b".") for key in keys])


# -- acquire ---------------------------------------------------------------------------------------


def test_nothing_is_begun_unless_told(on: On[None]) -> None:
    async def use(store: Store) -> None:
        reply = await store.acquire("t", 3, "me", "bundle", None)
        assert reply == Refused("missing", "a watermark", "none")
        assert await store.meta("t", 3) == {}

    on(use)


def test_begun_partition_holds_base_and_watermark_and_no_record(on: On[None]) -> None:
    async def use(store: Store) -> None:
        reply = await store.acquire("t", 3, "me", "bundle", 42)
        assert reply == Acquired(Fence(1, "me", "bundle"), 42, None)
        assert await store.meta("t", 3) == {
            "#W": "42", "#B": "42", "#E": "1", "#O": "me", "#M": "bundle", "#L": "", "#V": "1",
            "keys": "0",
        }  # fmt: skip

    on(use)


def test_every_acquire_takes_a_new_fence_and_leaves_the_rest(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store, 5)
        await store.save("t", 3, fence, SavePlan(5, 10, LAST), payload(2))
        again = await store.acquire("t", 3, "you", "bundle", 999)
        assert again == Acquired(Fence(2, "you", "bundle"), 10, LAST)
        assert (await store.meta("t", 3))["keys"] == "2"

    on(use)


def test_other_bundle_is_refused_and_changes_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        await acquired(store)
        before = await store.meta("t", 3)
        reply = await store.acquire("t", 3, "you", "new", 0)
        assert reply == Refused("bundle", "new", "bundle")
        assert await store.meta("t", 3) == before

    on(use)


@pytest.mark.parametrize("layout", ["2", None])
def test_other_layout_is_refused_and_changes_nothing(on: On[None], layout: str | None) -> None:
    async def use(store: Store) -> None:
        await acquired(store)
        name = store.name("t", 3)
        if layout is None:
            await store.redis.hdel(name, "#V")
        else:
            await store.redis.hset(name, "#V", layout)
        before = await store.meta("t", 3)
        reply = await store.acquire("t", 3, "you", "bundle", 0)
        assert reply == Refused("layout", "1", layout or "none")
        assert await store.meta("t", 3) == before

    on(use)


def test_first_partition_count_is_kept_and_another_refused(on: On[None]) -> None:
    async def use(store: Store) -> None:
        assert await store.check_partition_count("t", 4) is None
        assert await store.check_partition_count("t", 4) is None
        assert await store.check_partition_count("t", 8) == Refused("partitions", "8", "4")
        assert await store.check_partition_count("other", 8) is None
        await store.forget_partition_count("t")
        assert await store.check_partition_count("t", 8) is None

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
        held = await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(3))
        assert held == Held(10, 1, "me", "bundle")
        loaded = await store.load("t", 3, [b"0", b"none", b"2"])
        assert loaded.held == held
        assert loaded.values == [b"0.......", None, b"2......."]
        assert (await store.meta("t", 3))["#L"] == str(LAST)

    on(use)


def test_save_from_another_watermark_changes_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(1))
        held = await store.save("t", 3, fence, SavePlan(5, 20, LAST), payload(2, tag=b"x"))
        assert held == Held(10, 1, "me", "bundle")
        assert (await store.load("t", 3, [b"x0"])).values == [None]

    on(use)


def test_save_under_an_old_fence_changes_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        old = await acquired(store)
        await acquired(store, nonce="you")
        for fence in (old, replace(old, number=2), replace(old, nonce="you")):
            held = await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(1))
            assert held == Held(0, 2, "you", "bundle")
        wrong = Fence(2, "you", "other")
        assert (await store.save("t", 3, wrong, SavePlan(0, 10, LAST), payload(1))).watermark == 0
        assert (await store.load("t", 3, [b"0"])).values == [None]

    on(use)


def test_save_into_a_lost_hash_creates_nothing(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.redis.delete(store.name("t", 3))
        held = await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(1))
        assert held == Held(None, 0, "", "")
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
        held = await store.save("t", 3, fence, SavePlan(0, 10, LAST), states)
        assert held.watermark == 10
        assert (await store.meta("t", 3))["keys"] == str(count)
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
        assert (await store.save("t", 3, fence, SavePlan(10, 11, LAST), cleared)).watermark == 11
        assert (await store.meta("t", 3))["keys"] == "4"
        last = [states.keys[-1], states.keys[0], b"new2"]
        assert (await store.load("t", 3, last)).values == [states.values[-1], None, b"new2...."]

    on(use)


def test_clearing_a_key_that_was_never_stored_is_no_error(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        held = await store.save("t", 3, fence, SavePlan(0, 1, LAST), Payload((b"k",), (), ()))
        assert held.watermark == 1

    on(use)


def test_save_without_states_moves_the_watermark(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        held = await store.save("t", 3, fence, SavePlan(0, 7, LAST), Payload((), (), ()))
        assert held.watermark == 7

    on(use)


def test_save_of_eight_megabytes_is_whole(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        states = payload(130, 64 * 1024)
        held = await store.save("t", 3, fence, SavePlan(0, 10, LAST), states)
        assert held.watermark == 10
        assert (await store.load("t", 3, states.keys)).values == list(states.values)

    on(use)


def test_any_bytes_are_a_key_and_none_is_a_meta_field(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        keys = [b"", b"#W", b":", b"\x00\xff", b"#E", b"k" * 10_000]
        values = [b"v%d" % number for number in range(len(keys))]
        held = await store.save("t", 3, fence, SavePlan(0, 10, LAST), Payload((), keys, values))
        assert held == Held(10, 1, "me", "bundle")
        assert (await store.load("t", 3, keys)).values == values

    on(use)


def test_name_that_holds_something_else_is_an_error_and_stays(on: On[None]) -> None:
    async def use(store: Store) -> None:
        name = store.name("t", 3)
        await store.redis.set(name, "text")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await store.acquire("t", 3, "me", "bundle", 0)
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


def test_reset_drops_the_states_and_stops_the_owner(on: On[None]) -> None:
    async def use(store: Store) -> None:
        fence = await acquired(store)
        await store.save("t", 3, fence, SavePlan(0, 10, LAST), payload(3))
        await store.reset("t", 3, "operator", "bundle", 4)
        held = await store.save("t", 3, fence, SavePlan(10, 20, LAST), payload(3))
        assert held == Held(4, 2, "operator", "bundle")
        assert (await store.load("t", 3, [b"0"])).values == [None]
        again = await store.acquire("t", 3, "me", "bundle", None)
        assert again == Acquired(Fence(3, "me", "bundle"), 4, None)

    on(use)


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


def test_pieces_cover_everything_in_order() -> None:
    assert list(pieces([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(pieces([], 2)) == []
