"""What becomes of several workers under one parent: decided without clocks, programs or signals."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

import pytest

from keyfold.worker.processes_plan import LONG_RUN_S, LONGEST_PAUSE_S, Order, Plan, What

STOP_S = 18.0


def begun(count: int = 3) -> Plan:
    """Return a plan whose workers were all started at 0 s."""
    plan = Plan(count, STOP_S)
    assert plan.due(0.0) == [Order(What.START, number) for number in range(count)]
    return plan


def doings(orders: list[Order]) -> list[tuple[What, int]]:
    """Return what is done, without what is only told."""
    return [(o.what, o.number) for o in orders if o.what not in (What.TELL, What.WARN)]


def over(plan: Plan) -> bool:
    """Tell whether all is over (a property would be taken for unchanged by the type checker)."""
    return plan.over


def said(orders: list[Order]) -> list[str]:
    return [f"{order.what.value} {order.number} {order.words}" for order in orders if order.words]


def test_all_are_started_once() -> None:
    plan = begun()
    assert plan.due(1.0) == []
    assert plan.wait_s(1.0) is None
    assert not over(plan)


@pytest.mark.parametrize(("status", "words"), [
    (70, "ended with status 70"), (1, "ended with status 1"),
    (-SIGKILL, "was ended by SIGKILL"), (-99, "was ended by signal 99"),
])  # fmt: skip
def test_one_that_crashed_is_started_again_and_the_others_go_on(status: int, words: str) -> None:
    plan = begun()
    orders = plan.ended(1, status, 5.0)
    assert said(orders) == [f"warn 1 {words}; it is started again in 1 s"]
    assert doings(orders) == []
    assert plan.wait_s(5.2) == pytest.approx(0.8)
    assert plan.due(5.9) == []
    assert plan.due(6.0) == [Order(What.START, 1)]


def test_the_pause_doubles_up_to_its_limit_and_a_long_run_begins_it_anew() -> None:
    plan = begun(1)
    now_s, pauses = 0.0, []
    for _ in range(7):
        plan.ended(0, 70, now_s)
        pause_s = plan.wait_s(now_s)
        assert pause_s is not None
        pauses.append(pause_s)
        now_s += pause_s
        assert plan.due(now_s) == [Order(What.START, 0)]
        now_s += LONG_RUN_S - 1
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    plan.ended(0, 70, now_s + 1)
    assert plan.wait_s(now_s + 1) == 1


def test_one_that_needs_a_person_ends_all_with_its_status() -> None:
    plan = begun()
    plan.ended(0, 70, 1.0)
    orders = plan.ended(2, 2, 1.5)
    assert said(orders) == ["warn 2 cannot serve before something is set right (status 2)"]
    assert doings(orders) == [(What.STOP, 1)]
    assert plan.due(3.0) == []  # 0 is not started again
    assert plan.ended(1, 2, 3.0)[1:] == []
    assert over(plan)
    assert plan.status == 2


def test_a_stop_is_told_to_each_running_worker_once() -> None:
    plan = begun()
    plan.ended(1, 70, 1.0)
    assert plan.stop(1.5) == [Order(What.STOP, 0), Order(What.STOP, 2)]
    assert plan.stop(1.6) == []
    assert plan.due(2.5) == []  # 1 stays away


def test_a_stop_is_drained_when_all_have_ended_as_they_were_told() -> None:
    plan = begun(4)
    plan.stop(1.0)
    for number, status in enumerate((0, -SIGTERM, 130)):
        assert plan.ended(number, status, 2.0) == []
        assert not over(plan)
    plan.ended(3, 0, 3.0)
    assert over(plan)
    assert plan.status == 0


def test_a_crash_within_a_stop_is_its_status() -> None:
    plan = begun(2)
    plan.stop(1.0)
    assert said(plan.ended(0, 70, 2.0)) == ["warn 0 ended with status 70 while it was to stop"]
    plan.ended(1, 0, 2.0)
    assert over(plan)
    assert plan.status == 70


def test_what_has_not_stopped_in_time_is_killed_once() -> None:
    plan = begun(2)
    plan.stop(1.0)
    plan.ended(0, 0, 2.0)
    assert plan.wait_s(2.0) == STOP_S - 1
    assert plan.due(STOP_S + 0.9) == []
    assert plan.due(STOP_S + 1) == [Order(What.KILL, 1)]
    assert plan.due(STOP_S + 2) == []
    assert plan.wait_s(STOP_S + 2) is None
    plan.ended(1, -SIGKILL, STOP_S + 2)
    assert over(plan)
    assert plan.status == 70


def test_one_that_somebody_stopped_stays_away_until_the_last_has_gone() -> None:
    plan = begun(2)
    assert said(plan.ended(0, 0, 1.0)) == ["tell 0 was told to stop, and is not started again"]
    assert plan.due(100.0) == []
    assert not over(plan)
    plan.ended(1, -SIGTERM, 100.0)
    assert over(plan)
    assert plan.status == 0


def test_a_2_of_one_that_was_started_again_ends_nobody_else() -> None:
    plan = begun()
    plan.ended(1, 70, 5.0)
    assert plan.due(6.0) == [Order(What.START, 1)]
    orders = plan.ended(1, 2, 36.0)  # it lost a right, say
    assert said(orders) == ["warn 1 ended with status 2; it is started again in 2 s"]
    assert doings(orders) == []
    assert doings(plan.ended(0, 2, 40.0)) == [(What.STOP, 2)]
