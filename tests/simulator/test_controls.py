"""Every safeguard of the protocol, taken away one at a time: the simulator must notice each.

A control that passes is a failing test: then the simulator could not tell that safeguard is there.
"""

from __future__ import annotations

import pytest

from simulator.controls import CONTROLS
from simulator.schedules import first_caught
from simulator.world import Parts

MOST_SCHEDULES = 6_000  # in which a missing safeguard must have shown; most need fewer than 100


@pytest.mark.parametrize("safeguard", CONTROLS)
def test_the_simulator_notices_that_a_safeguard_is_missing(safeguard: str) -> None:
    """Run schedules without it."""
    control = CONTROLS[safeguard]
    caught = first_caught(range(1, MOST_SCHEDULES + 1), control.parts, control.seen)
    assert caught is not None, f"without {safeguard}: {MOST_SCHEDULES} schedules saw no violation"


def test_a_world_with_every_safeguard_passes_the_first_of_the_same_schedules() -> None:
    """Run the schedules most controls fail in."""
    assert first_caught(range(1, 300), Parts()) is None
