"""Hostile bytes never get another answer out of the native module than out of its twin.

`make native-fuzz` runs the same cases, and many more, under sanitizers.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from native_fuzz import FUZZ

CASES = 4000


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("fuzz", dict.fromkeys(FUZZ), ids=lambda fuzz: fuzz.__name__)
def test_spoiled_inputs_are_answered_as_by_the_twin(fuzz: Callable[[random.Random], None]) -> None:
    rng = random.Random(20)
    for _ in range(CASES):
        fuzz(rng)
