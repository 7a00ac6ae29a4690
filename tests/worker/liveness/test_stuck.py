"""The decision whether a worker is stuck: clocks driven by hand, no thread and no Kafka."""

from __future__ import annotations

from keyfold.worker.liveness.stuck import Judge, Reading

LIMIT_S = 120.0
TICK_S = 5.0
ME = object()


class Life:
    """A worker's partition and its log, looked at every TICK_S."""

    def __init__(self, saved: int = 0, end: int | None = 0, limit_s: float = LIMIT_S) -> None:
        self.judge = Judge(limit_s, 0.0)
        self.now_s = 0.0
        self.saved, self.end = saved, end
        self.owner: object = ME
        self.halted = False
        self.owned = True
        self.asked = 0

    def readings(self) -> list[Reading]:
        if not self.owned:
            return []
        return [Reading(0, self.owner, "run", self.saved, self.halted)]

    def tick(self) -> bool:
        """Let TICK_S pass and tell whether the partition is called stuck."""
        self.now_s += TICK_S
        self.judge.look(self.now_s, self.readings())
        asked = self.judge.to_ask(self.now_s)
        self.asked += len(asked)
        ends = {} if self.end is None else dict.fromkeys(asked, self.end)
        return bool(self.judge.answered(self.now_s, asked, ends))

    def stuck_within(self, seconds: float) -> float | None:
        """Return when it is first called stuck, None when it is not for so long."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            if self.tick():
                return self.now_s
        return None


def test_a_partition_that_stands_still_below_the_log_s_end_is_stuck_after_the_limit() -> None:
    at_s = Life(saved=5, end=6).stuck_within(1000)
    assert at_s is not None
    assert LIMIT_S <= at_s <= 1.5 * LIMIT_S


def test_the_verdict_says_where_it_stands() -> None:
    life = Life(saved=5, end=9)
    life.stuck_within(LIMIT_S)
    while not (stuck := life.judge.answered(life.now_s, [0], {0: 9})):
        life.tick()
    assert str(stuck[0]).startswith("0 in run: W 5 has not moved for 1")
    assert str(stuck[0]).endswith("s though the log ends at 9")


def test_an_idle_partition_is_never_stuck() -> None:
    assert Life(saved=9, end=9).stuck_within(100 * LIMIT_S) is None


def test_the_first_record_after_a_long_silence_gets_the_whole_limit() -> None:
    life = Life(saved=9, end=9)
    life.stuck_within(100 * LIMIT_S)
    life.end, since_s = 10, life.now_s
    at_s = life.stuck_within(1000)
    assert at_s is not None
    assert at_s - since_s >= LIMIT_S


def test_a_partition_that_moves_however_slowly_is_not_stuck() -> None:
    life = Life(saved=0, end=1_000_000)
    for _ in range(50):
        assert life.stuck_within(0.9 * LIMIT_S) is None
        life.saved += 1


def test_a_step_back_is_a_replay_and_counts_as_a_move() -> None:
    life = Life(saved=100, end=1000)
    assert life.stuck_within(0.9 * LIMIT_S) is None
    life.saved = 50
    assert life.stuck_within(0.9 * LIMIT_S) is None


def test_a_halted_partition_waits_for_an_operator() -> None:
    life = Life(saved=5, end=9)
    life.halted = True
    assert life.stuck_within(10 * LIMIT_S) is None
    assert life.asked == 0


def test_a_worker_that_owns_nothing_is_not_stuck() -> None:
    life = Life(saved=5, end=9)
    life.stuck_within(0.9 * LIMIT_S)
    life.owned = False
    assert life.stuck_within(10 * LIMIT_S) is None


def test_a_rebalance_begins_the_clock_anew_even_between_two_looks() -> None:
    life = Life(saved=5, end=9)
    for _ in range(20):
        assert life.stuck_within(0.9 * LIMIT_S) is None
        life.owner = object()
    assert life.stuck_within(2 * LIMIT_S) is not None


def test_a_broker_that_does_not_answer_the_watchdog_excuses() -> None:
    life = Life(saved=5, end=None)
    assert life.stuck_within(10 * LIMIT_S) is None
    life.end, since_s = 9, life.now_s
    at_s = life.stuck_within(1000)
    assert at_s is not None
    assert at_s - since_s >= LIMIT_S


def test_waiting_for_redis_excuses_and_the_limit_begins_after_it() -> None:
    life = Life(saved=5, end=9)
    while life.now_s < 10 * LIMIT_S:
        life.judge.excuse(life.now_s)
        assert not life.tick()
    since_s = life.now_s - TICK_S
    at_s = life.stuck_within(1000)
    assert at_s is not None
    assert LIMIT_S <= at_s - since_s <= 1.25 * LIMIT_S


def test_markers_behind_the_last_record_are_nothing_to_apply() -> None:
    life = Life(saved=5, end=6)
    life.stuck_within(0.9 * LIMIT_S)
    while not (stuck := life.judge.answered(life.now_s, [0], {0: 6})):
        life.tick()
    life.judge.nothing_to_apply(stuck[0])
    assert life.stuck_within(10 * LIMIT_S) is None
    life.end = 8
    assert life.stuck_within(2 * LIMIT_S) is not None


def test_kafka_found_away_before_the_exit_begins_the_clock_anew() -> None:
    life = Life(saved=5, end=9)
    assert life.stuck_within(1000) is not None
    life.judge.not_now()
    since_s = life.now_s
    at_s = life.stuck_within(1000)
    assert at_s is not None
    assert at_s - since_s >= LIMIT_S


def test_the_log_is_asked_seldom_and_not_at_all_while_w_moves() -> None:
    moving = Life(saved=0, end=1000)
    for _ in range(100):
        moving.saved += 1
        moving.tick()
    assert moving.asked == 0
    idle = Life(saved=9, end=9)
    idle.stuck_within(10 * LIMIT_S)
    assert 0 < idle.asked <= 80


def test_an_event_loop_that_does_not_answer_is_stalled_after_the_limit() -> None:
    judge = Judge(LIMIT_S, 0.0)
    judge.look(10.0, [])
    assert judge.stalled_s(10.0 + 0.99 * LIMIT_S) is None
    assert judge.stalled_s(10.0 + LIMIT_S) == LIMIT_S


def test_a_program_that_was_frozen_is_not_stuck_when_it_wakes() -> None:
    life = Life(saved=5, end=9)
    life.stuck_within(0.9 * LIMIT_S)
    frozen_s = 10 * LIMIT_S
    life.now_s += frozen_s
    life.judge.lived(life.now_s, frozen_s + TICK_S, TICK_S)
    assert life.judge.stalled_s(life.now_s) is None
    since_s = life.now_s
    at_s = life.stuck_within(1000)
    assert at_s is not None
    assert at_s - since_s >= LIMIT_S


def test_a_look_that_is_a_little_late_changes_nothing() -> None:
    judge = Judge(LIMIT_S, 0.0)
    judge.lived(50.0, TICK_S + 10.0, TICK_S)
    assert judge.stalled_s(LIMIT_S) == LIMIT_S


def test_without_a_limit_nothing_is_asked_and_nothing_is_stuck() -> None:
    life = Life(saved=5, end=9, limit_s=float("inf"))
    assert life.stuck_within(100 * LIMIT_S) is None
    assert life.asked == 0
    assert life.judge.stalled_s(1e9) is None
    assert life.judge.unmoved_s(0, 5, life.now_s) == life.now_s - TICK_S
    assert life.judge.unmoved_s(0, 6, life.now_s) == 0.0  # W has moved since the last look
