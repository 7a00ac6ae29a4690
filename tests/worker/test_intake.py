"""The intake's hold on Faust: its private names, and the one rule about the Kafka position.

The first part fails on a Faust or aiokafka that renamed what worker/intake.py overrides, so that it
is noticed here. The second drives the intake task's own steps against a scripted consumer thread,
the third asks questions in a real thread, the fourth has scripted answers to them.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import aiokafka
import faust
import pytest
from aiokafka.consumer import subscription_state
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import (
    IllegalStateError,
    KafkaConnectionError,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import TopicPartition
from faust.app.base import BootStrategy
from faust.tables.recovery import Recovery
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from keyfold.worker import intake as intake_module
from keyfold.worker.consumer_thread import ConsumerThread
from keyfold.worker.errors import Crash
from keyfold.worker.halts import Halts
from keyfold.worker.intake import LONGEST_PAUSE_S, Consumer, pause_s
from keyfold.worker.protocol import GroupOffset, Topic
from keyfold.worker.unreadable import Unreadable

# -- the contract with Faust -----------------------------------------------------------------------


def test_this_is_the_faust_whose_private_names_were_read() -> None:
    assert faust.__version__.startswith("0.15.")
    assert aiokafka.__version__.startswith("0.14.")


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer", ["self", "transport"]),
        (driver.AIOKafkaConsumerThread, "verify_event_path", ["self", "now", "tp"]),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer", ["self"]),
        (driver.AIOKafkaConsumerThread, "getmany", ["self", "active_partitions", "timeout"]),
        (driver.Consumer, "_new_consumer_thread", ["self"]),
        (faust_consumer.Consumer, "_drain_messages", ["self", "fetcher"]),
        (faust_consumer.Consumer, "perform_seek", ["self"]),
        (faust_consumer.Consumer, "wait_empty", ["self"]),
        (faust_consumer.Consumer, "on_partitions_revoked", ["self", "revoked"]),
        (faust_consumer.Consumer, "_get_active_partitions", ["self"]),
        (faust_consumer.Consumer, "_add_gap", ["self", "tp", "offset_from", "offset_to"]),
        (driver.Consumer, "_getmany", ["self", "active_partitions", "timeout"]),
        (driver.Consumer, "seek_wait", ["self", "partitions"]),
        (driver.Producer, "_settings_extra", ["self"]),
        (driver.Producer, "_settings_default", ["self"]),
        (driver.Producer, "_settings_auth", ["self"]),
        (driver.Producer, "_ensure_producer", ["self"]),
        (faust.App, "_new_transport", ["self"]),
        (faust.App, "_new_producer_transport", ["self"]),
        (driver.AIOKafkaConsumerThread, "on_thread_stop", ["self"]),
        (BootStrategy, "kafka_consumer", ["self"]),
        (BootStrategy, "server", ["self"]),
        (GroupCoordinator, "fetch_committed_offsets", ["self", "partitions"]),
        (GroupCoordinator, "reset_generation", ["self"]),
        (subscription_state.Assignment, "state_value", ["self", "tp"]),
    ],
)  # fmt: skip
def test_what_the_intake_overrides_or_calls_is_still_there(
    owner: type, name: str, parameters: list[str]
) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_aiokafka_reads_at_start_what_the_intake_sets_after_making_a_consumer() -> None:
    source = inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    for name in ("_isolation_level", "_auto_offset_reset", "_fetch_max_wait_ms"):
        assert f"self.{name}" in source, name


def test_aiokafka_drops_what_it_fetched_before_a_seek() -> None:
    assert "check_assignment" in inspect.getsource(aiokafka.consumer.fetcher.FetchResult.getall)
    assert "reassignment_in_progress" in inspect.getsource(Fetcher.fetched_records)


def test_aiokafka_keeps_a_partition_s_position_where_the_intake_reads_it() -> None:
    async def scenario() -> None:
        state = subscription_state.TopicPartitionState(None)
        assert state.has_valid_position is False
        state.reset_to(7)
        assert (state.has_valid_position, state.position) == (True, 7)
        assert (state.highwater, state.lso) == (None, None)

    asyncio.run(scenario())


def test_faust_starts_its_web_server_before_the_consumer() -> None:
    source = inspect.getsource(BootStrategy.server)
    assert source.index("self.web_server()") < source.index("self.kafka_consumer()")


def test_aiokafka_keeps_a_member_s_id_where_leaving_the_group_reads_it() -> None:
    source = inspect.getsource(GroupCoordinator)
    assert "self.member_id" in source
    assert "self.coordinator_id" in source


def test_faust_still_calls_perform_seek_under_a_timeout() -> None:
    """Why it must not wait for Redis, and must end the worker before that time is over."""
    source = inspect.getsource(Recovery._resume_streams)
    assert "consumer.perform_seek(), timeout=self.app.conf.broker_request_timeout" in " ".join(
        source.split()
    )


# -- one owner of the position ---------------------------------------------------------------------


@dataclass(eq=False)
class ScriptedOwner:
    """Stands for worker/owner.Owner: remembers what it was offered."""

    number: int = 0
    open: bool = False
    waiting_bytes: int = 0
    offered: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # told though no record came
    refused_at: list[int] = field(default_factory=list)
    started: bool = False
    drained: list[float] = field(default_factory=list)  # the deadlines
    saved: int = 0  # W
    halted: list[str] = field(default_factory=list)

    @property
    def partition(self) -> Any:
        return SimpleNamespace(
            number=self.number, saved=self.saved, halts=Halts("worker.toml", self.number)
        )

    def halt(self, why: str) -> None:
        self.halted.append(why)

    def sought(self) -> None:
        self.open = True

    def offer(self, records: list[Any]) -> None:
        self.offered += [record.offset for record in records]

    def saw_log_end(self, offset: int) -> None:
        pass

    def passed(self, position: int) -> None:
        self.positions.append(position)

    def out_of_range(self, offset: int) -> None:
        self.refused_at.append(offset)

    def start(self) -> None:
        self.started = True

    async def drain(self, deadline_s: float) -> None:
        self.drained.append(deadline_s)

    def hint_due(self) -> bool:
        return False


class ScriptedConsumer(Consumer):
    """The real intake steps on a position kept here; `during_fetch` runs while a fetch waits."""

    def __init__(self, owner: ScriptedOwner, limit_bytes: int = 1000) -> None:
        self.owners: Any = {owner.number: owner}
        self._seeks = {}
        self.app = SimpleNamespace(
            input_topic="in",
            config=SimpleNamespace(worker=SimpleNamespace(max_buffer_bytes=limit_bytes)),
        )
        self.position = 0
        self.found = 10  # records of a fetch
        self.damaged_at = 10**6  # what stands there cannot be read
        self.markers = 0  # offsets behind them that no reader of committed records sees
        self._thread = SimpleNamespace(position_of=lambda tp: self.position, behind=False)
        self.fetching = False
        self.during_fetch: Any = lambda: None
        self.fetched_from: list[int] = []
        self.asked: list[set[TP]] = []

    def assignment(self) -> set[TP]:
        return {TP("in", 0)}

    def highwater(self, tp: TP) -> int:
        return 1000

    def _get_active_partitions(self) -> set[TP]:
        return {TP("in", 0)}

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        assert not self.fetching, "a seek overlapped a fetch"
        (self.position,) = partitions.values()

    async def _getmany(self, active_partitions: set[TP], timeout: float) -> Any:
        self.asked.append(set(active_partitions))
        self.fetching = True
        start = self.position
        self.fetched_from.append(start)
        self.during_fetch()
        self.fetching = False
        found = min(self.found, self.damaged_at - start)
        self.position = start + found + self.markers
        records: list[Any] = [SimpleNamespace(offset=start + i) for i in range(found)]
        if found < self.found:
            records.append(Unreadable(self.damaged_at, "in:0: batch length 7"))
        return {TP("in", 0): records} if records else {}


async def _turn(consumer: ScriptedConsumer) -> None:
    await consumer._seek_as_requested()
    await consumer._fetch_once()


async def _two_turns_with_a_rewind_during_the_first() -> ScriptedOwner:
    owner = ScriptedOwner()
    consumer = ScriptedConsumer(owner)
    consumer.request_seek(owner, 100)  # type: ignore[arg-type]
    await _turn(consumer)
    assert owner.offered == list(range(100, 110))

    def rewind() -> None:
        owner.open = False
        owner.offered.clear()
        consumer.request_seek(owner, 50)  # type: ignore[arg-type]

    consumer.during_fetch = rewind
    await _turn(consumer)
    consumer.during_fetch = lambda: None
    assert owner.offered == [], "records fetched for the old position were offered"
    await _turn(consumer)
    return owner


def test_a_seek_asked_for_during_a_fetch_waits_and_the_fetch_is_dropped() -> None:
    owner = asyncio.run(_two_turns_with_a_rewind_during_the_first())
    assert owner.offered == list(range(50, 60))


def test_an_owner_that_opened_during_a_fetch_gets_nothing_of_it() -> None:
    async def scenario() -> ScriptedOwner:
        owner, successor = ScriptedOwner(open=True), ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)
        consumer.during_fetch = lambda: consumer.owners.update({0: successor})
        await consumer._fetch_once()
        return successor

    assert asyncio.run(scenario()).offered == []


def test_owner_is_told_where_the_position_stands_after_the_records_of_a_fetch() -> None:
    async def scenario(found: int, markers: int) -> ScriptedOwner:
        owner = ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)
        consumer.found, consumer.markers = found, markers
        await consumer._fetch_once()
        return owner

    owner = asyncio.run(scenario(10, 3))
    assert (owner.offered[-1], owner.positions) == (9, [13])
    owner = asyncio.run(scenario(0, 2))  # an aborted transaction, or nothing but markers
    assert (owner.offered, owner.positions) == ([], [2])


def test_owner_that_left_or_came_during_a_fetch_is_told_of_no_position() -> None:
    async def scenario(successor: ScriptedOwner | None) -> list[int]:
        owner = ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)

        def change() -> None:
            owner.open = False
            if successor is not None:
                consumer.owners[0] = successor

        consumer.during_fetch = change
        await consumer._fetch_once()
        return owner.positions + (successor.positions if successor else [])

    assert asyncio.run(scenario(None)) == []
    assert asyncio.run(scenario(ScriptedOwner(open=True))) == []


def test_events_that_come_quickly_gather_but_one_alone_waits_for_nobody() -> None:
    assert pause_s(1) <= 0.0005
    assert pause_s(2) < pause_s(20) < pause_s(100) == pause_s(10_000) == LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("found", "behind", "pauses"),
    [
        (10, False, [pause_s(10)]),
        (5000, False, [LONGEST_PAUSE_S]),  # many, but all there were
        (10, True, []),  # large ones: the fetch was full, and more are waiting
        (0, False, []),
    ],
)
def test_the_pause_follows_a_fetch_that_brought_the_last_there_were(
    found: int, behind: bool, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        owner = ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)
        consumer.found, consumer._thread.behind = found, behind
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            await consumer._fetch_once()

    asyncio.run(scenario())
    assert slept == pauses


def test_a_log_that_cannot_be_read_halts_its_partition_once_all_before_is_saved() -> None:
    async def scenario() -> None:
        owner = ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)
        consumer.damaged_at = 4
        await consumer._fetch_once()
        assert (owner.offered, owner.halted, owner.positions) == ([0, 1, 2, 3], [], [4])
        await consumer._fetch_once()
        assert (owner.offered, owner.halted) == ([0, 1, 2, 3], [])
        owner.saved = 4
        await consumer._fetch_once()
        assert (owner.offered, consumer.fetched_from) == ([0, 1, 2, 3], [0, 4, 4])
        assert owner.halted == [
            "the log cannot be read from offset 4 on: in:0: batch length 7; restore it from a "
            "replica, or give up what stands there: "
            "keyfold-state reset worker.toml --partition 0 --to earliest|latest|OFFSET"
        ]

    asyncio.run(scenario())


def thread_with(state: Any) -> ConsumerThread:
    """Return a thread whose aiokafka keeps this of partition 0."""
    states = {TopicPartition("in", 0): state}
    assignment = SimpleNamespace(state_value=states.get)
    thread = ConsumerThread.__new__(ConsumerThread)
    thread._consumer = SimpleNamespace(
        _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    )
    return thread


def test_position_is_read_from_what_aiokafka_keeps_for_the_next_fetch() -> None:
    tp = TP("in", 0)
    state = SimpleNamespace(has_valid_position=True, position=7)
    thread = thread_with(state)
    assert thread.position_of(tp) == 7
    state.has_valid_position = False
    assert thread.position_of(tp) is None
    assert thread.position_of(TP("in", 1)) is None


@pytest.mark.parametrize(
    ("highwater", "stable", "behind"),
    [
        (7, 7, False),
        (8, 8, True),
        (8, 7, False),  # the last one is of a transaction that is still open
        (7, None, False),  # a broker without transactions
        (8, None, True),
        (8, -1, True),  # another one that says nothing of them
    ],
)
def test_a_fetch_is_behind_if_there_was_more_that_it_could_have_brought(
    highwater: int, stable: int | None, behind: bool
) -> None:
    state = SimpleNamespace(has_valid_position=True, position=7, highwater=highwater, lso=stable)
    thread = thread_with(state)
    tp = TopicPartition("in", 0)
    assert _behind_after(thread, {tp: ["a record"]}) is behind
    assert not _behind_after(thread, {})
    assert not _behind_after(thread, {TopicPartition("of-an-agent", 0): ["a record"]})
    state.has_valid_position = False  # a rebalance took it
    assert not _behind_after(thread, {tp: ["a record"]})


def _behind_after(thread: ConsumerThread, fetched: dict[TopicPartition, list[str]]) -> bool:
    """Fetch this by Faust's own method and ours."""

    async def fetched_records(*_: Any, **__: Any) -> dict[TopicPartition, list[str]]:
        return fetched

    @contextmanager
    def fetch_context() -> Iterator[None]:
        yield

    subscriptions = SimpleNamespace(fetch_context=fetch_context)
    fetcher = SimpleNamespace(
        _closed=False, _subscriptions=subscriptions, fetched_records=fetched_records
    )
    thread.consumer = cast(Any, SimpleNamespace(flow_active=True))
    thread.app = cast(Any, SimpleNamespace(input_topic="in"))
    fetching = thread._fetch_records(SimpleNamespace(_closed=False, _fetcher=fetcher), set())
    assert asyncio.run(fetching) == fetched
    return thread.behind


def test_a_partition_whose_records_wait_in_memory_is_not_fetched() -> None:
    owner = ScriptedOwner(open=True, waiting_bytes=1001)
    consumer = ScriptedConsumer(owner)
    assert consumer._wanted({0: owner}) == set()  # type: ignore[dict-item]
    owner.waiting_bytes = 0
    assert consumer._wanted({0: owner}) == {TP("in", 0)}  # type: ignore[dict-item]


def test_a_refused_position_goes_to_its_owner_if_it_is_open() -> None:
    async def scenario(is_open: bool) -> list[int]:
        owner = ScriptedOwner(open=is_open)
        consumer = ScriptedConsumer(owner)
        await consumer._note_refused(OffsetOutOfRangeError({TP("in", 0): 7}))
        return owner.refused_at

    assert asyncio.run(scenario(True)) == [7]
    assert asyncio.run(scenario(False)) == []


def test_the_input_topic_is_left_out_of_fausts_livelock_warnings() -> None:
    thread = ConsumerThread.__new__(ConsumerThread)
    thread.app = SimpleNamespace(input_topic="in")
    thread.verify_event_path(0.0, TP("in", 0))  # Faust's would need a started consumer


# -- questions to Kafka run beside Faust's queue ---------------------------------------------------


class ThreadAlone(ConsumerThread):
    """The consumer's thread with a loop and nothing else: no Faust service runs in it."""

    def __init__(self, consumer: Any = None) -> None:
        self.thread_loop = asyncio.new_event_loop()
        self._consumer = consumer
        self.hanging = self.ended = 0  # questions that never answer by themselves

    async def hang(self) -> None:
        self.hanging += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def where(self, number: int) -> tuple[int, str]:
        return number, threading.current_thread().name

    async def fail(self) -> None:
        raise KafkaConnectionError("no broker")


@contextmanager
def thread_alone(consumer: Any = None) -> Iterator[ThreadAlone]:
    """Run the loop of a consumer thread."""
    made = ThreadAlone(consumer)
    running = threading.Thread(target=made.thread_loop.run_forever, name="the consumer's")
    running.start()
    try:
        yield made
    finally:
        made.thread_loop.call_soon_threadsafe(made.thread_loop.stop)
        running.join()
        made.thread_loop.close()


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition. Raises TimeoutError."""
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


def test_two_questions_that_hang_keep_no_third_one_waiting() -> None:
    """Faust's own queue has two places: two partitions without a leader would fill it."""

    async def scenario(thread: ThreadAlone) -> None:
        slow = [asyncio.create_task(thread.ask(thread.hang, timeout_s=60)) for _ in range(2)]
        await until(lambda: thread.hanging == 2)
        assert await asyncio.wait_for(thread.ask(thread.where, 7), 5) == (7, "the consumer's")
        assert [task.done() for task in slow] == [False, False]
        for task in slow:
            task.cancel()  # who asks may be cancelled, too: by a revoked partition
        await until(lambda: thread.ended == 2)
        await asyncio.gather(*slow, return_exceptions=True)

    with thread_alone() as thread:
        asyncio.run(scenario(thread))


def test_question_without_an_answer_ends_in_time_and_in_the_thread_too() -> None:
    async def scenario(thread: ThreadAlone) -> None:
        with pytest.raises(KafkaTimeoutError, match=r"hang: no answer within 0.05 s"):
            await asyncio.wait_for(thread.ask(thread.hang, timeout_s=0.05), 5)
        # Before the one who asked was told: nothing goes on there that nobody waits for.
        assert (thread.hanging, thread.ended) == (1, 1)

    with thread_alone() as thread:
        asyncio.run(scenario(thread))


def test_what_kafka_says_of_a_question_reaches_the_one_who_asked() -> None:
    async def scenario(thread: ThreadAlone) -> None:
        with pytest.raises(KafkaConnectionError, match="no broker"):
            await thread.ask(thread.fail)

    with thread_alone() as thread:
        asyncio.run(scenario(thread))


class OffsetsOf:
    """aiokafka's consumer, as far as group offsets are set."""

    def __init__(self, *numbers: int) -> None:
        self.assigned = {TopicPartition("in", number) for number in numbers}
        self.set: list[dict[TopicPartition, Any]] = []

    def assignment(self) -> set[TopicPartition]:
        return self.assigned

    async def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        self.set.append(offsets)


def test_group_offset_of_a_partition_that_is_not_assigned_any_more_is_an_error() -> None:
    """Or ACQUIRE would believe that Kafka remembers where a group began."""
    both = {TopicPartition("in", number): GroupOffset(5, "keyfold:init") for number in (0, 1)}
    nobody, half = OffsetsOf(), OffsetsOf(1)
    with thread_alone(nobody) as thread:
        with pytest.raises(IllegalStateError, match="none of these partitions is assigned any mor"):
            asyncio.run(thread.ask(thread.set_committed, both))
        assert nobody.set == []
    with thread_alone(half) as thread:
        asyncio.run(thread.ask(thread.set_committed, both))
        ((where, at),) = half.set[0].items()
        assert (where, at.offset, at.metadata) == (TopicPartition("in", 1), 5, "keyfold:init")


# -- what the consumer asks ------------------------------------------------------------------------


class ScriptedThread:
    """Answers questions by their name; `gate` holds the answers back. It has no queue to call."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[str, float | None]] = []  # question and time limit
        self.answers: dict[str, Any] = {}
        self.before_answer: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        if name == "call_thread":
            raise AttributeError(name)
        return SimpleNamespace(__name__=name)

    async def ask(self, question: Any, *_: Any, timeout_s: float | None = None) -> Any:
        self.asked.append((question.__name__, timeout_s))
        await self.gate.wait()
        self.before_answer()
        answer = self.answers.get(question.__name__)
        if isinstance(answer, Exception):
            raise answer
        return answer


class AskingConsumer(Consumer):
    """The real consumer's questions and rebalances; Kafka is a script. Made inside a loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.failures: list[BaseException] = []
        kafka = SimpleNamespace(request_timeout_s=10.0)
        worker = SimpleNamespace(drain_s=30.0, exactly_once=False)
        self.app = SimpleNamespace(
            input_topic="in", failure=None, fail=self.failures.append,
            config=SimpleNamespace(kafka=kafka, worker=worker),
            new_owner=lambda number: ScriptedOwner(number),
        )  # fmt: skip
        self.log = SimpleNamespace(info=lambda *_: None)
        self._thread = ScriptedThread()
        self.owners: Any = {}
        self.assigned: set[TP] = set()
        self._seeks = {}
        self._read_offset: Any = {}
        self._committed_offset: Any = {}
        self._counts, self._counts_at = None, float("-inf")
        self._asked, self._asked_at, self._known = None, float("-inf"), None
        self.identity, self.identified = "id-1", 0
        self._ids: Any = SimpleNamespace(of=self._id_of)

    def assignment(self) -> set[TP]:
        return self.assigned

    async def _id_of(self, name: str) -> str:
        self.identified += 1
        return self.identity


def asking(scenario: Callable[[AskingConsumer], Any]) -> None:
    """Run a scenario with a consumer that asks a script."""

    async def main() -> None:
        await scenario(AskingConsumer())

    asyncio.run(main())


AGENTS = TP("agents", 0)


def test_partitions_are_those_assigned_after_the_agents_topics_were_sought() -> None:
    """The assignment may change while Kafka is asked: two workers would own a partition."""

    async def scenario(consumer: AskingConsumer) -> None:
        stays, leaves = ScriptedOwner(1), ScriptedOwner(0)
        consumer.owners = {0: leaves, 1: stays}
        consumer.assigned = {TP("in", 0), TP("in", 1), TP("in", 2), AGENTS}
        thread: Any = consumer._thread
        thread.answers["seek_rest_to_committed"] = {AGENTS: 7}

        def rebalance() -> None:
            consumer.assigned = {TP("in", 1), TP("in", 3), AGENTS}

        thread.before_answer = rebalance
        await consumer.perform_seek()
        assert consumer.owners.keys() == {1, 3}
        assert consumer.owners[1] is stays
        assert consumer.owners[3].started
        # At once: it is another worker's already, which will see what was saved.
        assert (leaves.drained, stays.drained) == ([0.0], [])
        assert consumer._read_offset == consumer._committed_offset == {AGENTS: 7}
        assert consumer.failures == []

    asking(scenario)


def test_without_agents_topics_an_assignment_asks_kafka_nothing() -> None:
    async def scenario(consumer: AskingConsumer) -> None:
        consumer.assigned = {TP("in", 0)}
        await consumer.perform_seek()
        assert consumer.owners.keys() == {0}
        thread: Any = consumer._thread
        assert thread.asked == []

    asking(scenario)


def test_slow_seek_of_agents_topics_ends_the_worker_before_faust_gives_up() -> None:
    """Faust would log it, and handle no rebalance ever again: a worker that looks alive."""

    async def scenario(consumer: AskingConsumer) -> None:
        consumer.assigned = {TP("in", 0), AGENTS}
        thread: Any = consumer._thread
        thread.answers["seek_rest_to_committed"] = KafkaTimeoutError("no answer within 8 s")
        await consumer.perform_seek()
        ((name, limit_s),) = thread.asked
        assert name == "seek_rest_to_committed"
        assert 5 <= limit_s < consumer.app.config.kafka.request_timeout_s
        (failure,) = consumer.failures
        assert isinstance(failure, Crash)
        assert str(failure).startswith("positions of the agents' topics: ")
        assert consumer.owners == {}

    asking(scenario)


@pytest.mark.parametrize("error", [IllegalStateError("left"), KafkaTimeoutError("slow")])
def test_hint_that_kafka_does_not_take_stops_nobody(error: Exception) -> None:
    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers["set_committed"] = error
        owner: Any = SimpleNamespace(
            hint_due=lambda: True, partition=SimpleNamespace(number=0, saved=5)
        )
        await consumer._tell_kafka([owner])
        assert thread.asked == [("set_committed", intake_module.HINT_TIMEOUT_S)]

    asking(scenario)


def test_every_question_of_an_owner_goes_beside_faust_s_queue() -> None:
    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers = {
            "committed": GroupOffset(5, ""), "log_bounds": (1, 2), "partition_counts": {"in": 4},
        }  # fmt: skip
        assert await consumer.group_offset("in", 0) == GroupOffset(5, "")
        assert await consumer.bounds("in", 0) == (1, 2)
        assert await consumer.partition_counts(["in", "none"]) == {"in": 4, "none": 0}
        await consumer.set_group_offset("in", 0, GroupOffset(5, ""))
        assert [name for name, _ in thread.asked] == [
            "committed", "log_bounds", "partition_counts", "set_committed",
        ]  # fmt: skip

    asking(scenario)


# -- what a topic is -------------------------------------------------------------------------------


@pytest.fixture
def always_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an answer count for nothing once it is there."""
    monkeypatch.setattr(intake_module, "COUNTS_FOR_S", -1.0)


def test_all_partitions_that_ask_what_a_topic_is_share_one_question() -> None:
    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers["partition_counts"] = {"in": 4}
        thread.gate.clear()
        asked = [asyncio.create_task(consumer.identify("in", fresh=True)) for _ in range(5)]
        await until(lambda: thread.asked)
        asked[0].cancel()  # one that leaves takes the answer from nobody
        thread.gate.set()
        assert await asyncio.gather(*asked[1:]) == [Topic(4, "id-1")] * 4
        assert (len(thread.asked), consumer.identified) == (1, 1)
        assert await consumer.identify("in", fresh=True) == Topic(4, "id-1")  # in the same moment
        assert (len(thread.asked), consumer.identified) == (1, 1)

    asking(scenario)


@pytest.mark.usefixtures("always_again")
def test_what_is_known_of_a_topic_is_told_at_once_while_kafka_is_asked_again() -> None:
    """An audit that waits for a broker would keep its partition from saving."""

    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers["partition_counts"] = {"in": 4}
        await consumer.identify("in", fresh=True)
        thread.gate.clear()  # the broker hangs
        begun = time.monotonic()
        for _ in range(3):
            answer = await asyncio.wait_for(consumer.identify("in", fresh=False), 5)
            assert answer == Topic(4, "id-1")
        assert time.monotonic() - begun < 5
        await until(lambda: len(thread.asked) == 2)  # one more question, whoever asks
        thread.answers["partition_counts"] = {"in": 5}
        fresh = asyncio.create_task(consumer.identify("in", fresh=True))
        await asyncio.sleep(0)
        assert not fresh.done()  # ACQUIRE waits
        thread.gate.set()
        assert await fresh == Topic(5, "id-1")

    asking(scenario)


@pytest.mark.usefixtures("always_again")
def test_what_kafka_said_of_a_topic_since_the_last_look_is_what_is_known() -> None:
    """One partition looks once a second, and then each answer came after the look that asked."""

    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers["partition_counts"] = {"in": 4}
        await consumer.identify("in", fresh=True)
        consumer.identity = "id-2"  # created anew
        await consumer.identify("in", fresh=False)  # asks
        await until(lambda: consumer.identified == 2)
        await until(lambda: consumer._asked is not None and consumer._asked.done())
        assert await consumer.identify("in", fresh=False) == Topic(4, "id-2")

    asking(scenario)


@pytest.mark.usefixtures("always_again")
def test_broker_that_fails_to_say_what_a_topic_is_is_asked_again() -> None:
    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers["partition_counts"] = KafkaTimeoutError("no answer within 5 s")
        with pytest.raises(KafkaTimeoutError):
            await consumer.identify("in", fresh=True)
        thread.answers["partition_counts"] = {"in": 4}
        assert await consumer.identify("in", fresh=True) == Topic(4, "id-1")

    asking(scenario)


def test_a_worker_without_partitions_looks_at_the_topic_too() -> None:
    """A leader that started while Kafka was away knows no partitions and gives none to anybody."""

    async def scenario(consumer: AskingConsumer) -> None:
        thread: Any = consumer._thread
        thread.answers = {"partition_counts": {"in": 4}}
        assert await consumer._kafka_answers()
        assert [name for name, _ in thread.asked] == ["partition_counts"]

    asking(scenario)


@pytest.mark.parametrize(("known", "forced"), [(None, 1), ({0, 1}, 1), ({0, 1, 2}, 0)])
def test_metadata_older_than_the_topic_is_asked_for_at_once(
    known: set[int] | None, forced: int
) -> None:
    """Aiokafka would look again after five minutes."""
    updates: list[None] = []
    fresh = SimpleNamespace(topics=lambda: {"in"}, partitions_for_topic=lambda topic: {0, 1, 2})

    async def fetch() -> Any:
        return fresh

    client = SimpleNamespace(
        fetch_all_metadata=fetch,
        cluster=SimpleNamespace(partitions_for_topic=lambda topic: known),
        force_metadata_update=lambda: updates.append(None),
    )
    thread = SimpleNamespace(
        _ensure_consumer=lambda: SimpleNamespace(_client=client),
        app=SimpleNamespace(input_topic="in"),
    )
    asked = ConsumerThread.partition_counts(cast(Any, thread))
    assert asyncio.run(asked) == {"in": 3}
    assert len(updates) == forced
