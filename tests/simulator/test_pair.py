"""Two groups and an operator who hands the outputs over and back, with crashes at every point.

Every event's prediction must be the group's that has it in the end, none may be missing, and none
may be of both; each safeguard of the handover, taken away, must show.
"""

from __future__ import annotations

import pytest

from simulator.pair import first_caught, run_pairs
from simulator.pair_controls import CONTROLS

SCHEDULES = 300
MOST_SCHEDULES = 600  # in which a missing safeguard must have shown

# What must have happened in the schedules, or they prove less than they seem to.
HAPPENED = {
    "handed over", "not handed over", "command killed", "command refused", "reply lost",
    "request late", "request lost", "late command", "crash: killed", "crash: not owner", "drain",
    "rewind", "rollback", "two owners", "frozen", "thawed", "transaction", "transaction failed",
    "output repeated", "agreement forgotten",
}  # fmt: skip


def test_no_schedule_of_two_groups_leaves_a_gap_or_a_double() -> None:
    """Run schedules of two groups."""
    tally = run_pairs(range(1, SCHEDULES + 1))
    assert not HAPPENED - tally.happened.keys()
    assert {"AskHandovers", "SetHandovers"} <= tally.asked.keys()
    assert tally.happened["handed over"] > SCHEDULES / 2


@pytest.mark.parametrize("safeguard", CONTROLS)
def test_the_simulator_notices_that_a_safeguard_of_the_handover_is_missing(safeguard: str) -> None:
    """Run schedules without it."""
    control = CONTROLS[safeguard]
    caught = first_caught(range(1, MOST_SCHEDULES + 1), control.parts, control.seen)
    assert caught is not None, f"without: {safeguard}: {MOST_SCHEDULES} schedules saw no violation"
