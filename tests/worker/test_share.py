"""How a micro-batch is put together: fairly over partitions, and void once its fence is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from memory_log import event

from keyfold.worker.owner import Owner
from keyfold.worker.partition import Partition
from keyfold.worker.protocol import Acquired, Fence, Phase
from keyfold.worker.records import Records
from keyfold.worker.share import Share, take

FENCE = Fence(1, "me", "bundle")


class Waiting:
    """As much of an owner as take() looks at."""

    def __init__(self, room: int, count: int, number: int = 0) -> None:
        self._room = room
        self.waiting = [event(i, b"k%d" % i) for i in range(count)]
        self.partition = Partition("in", number, "group")
        self.partition.acquire()
        self.partition.acquired(Acquired(FENCE, 0, None), 0, 1000)
        self.partition.sought()

    def room(self) -> int:
        return self._room

    def take(self, most: int, most_bytes: int | None = None) -> Records:
        self.most_bytes = most_bytes
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return Records.of(taken)


def shares(most: int, *owners: tuple[int, int]) -> list[Share]:
    made: list[Any] = [Waiting(*owner, number) for number, owner in enumerate(owners)]
    return take(made, most)


def is_valid(share: Share) -> bool:
    """Return what every event of the partition's life may have changed."""
    return share.valid


def counts(most: int, *owners: tuple[int, int]) -> list[int]:
    taken = shares(most, *owners)
    firsts = np.cumsum([0, *(len(share.records) for share in taken)]).tolist()
    assert [share.first for share in taken] == firsts[:-1]
    assert all(share.records for share in taken)
    return [len(share.records) for share in taken]


def test_micro_batch_is_shared_fairly_and_what_is_left_over_goes_round() -> None:
    assert counts(90, (999, 100), (999, 100), (999, 100)) == [30, 30, 30]
    assert counts(90, (999, 1000), (999, 10)) == [10, 80]
    assert counts(90, (20, 1000), (999, 1000), (0, 5), (999, 0)) == [20, 70]
    assert counts(90) == []
    assert counts(90, (0, 10), (10, 0)) == []


def test_every_partition_moves_even_if_there_are_more_than_events_in_a_micro_batch() -> None:
    assert counts(2, (9, 9), (9, 9), (9, 9)) == [1, 1, 1]


def test_a_limit_in_bytes_is_shared_by_all_partitions_with_records() -> None:
    made: list[Any] = [Waiting(9, 9), Waiting(9, 0), Waiting(9, 9)]
    take(made, 10, 1000)
    assert [made[0].most_bytes, made[2].most_bytes] == [500, 500]


def test_shares_lie_side_by_side_in_the_micro_batch() -> None:
    first, second = shares(90, (999, 3), (999, 5))
    assert (first.rows, second.rows) == (slice(0, 3), slice(3, 8))
    assert (first.number, second.number) == (0, 1)
    assert second.keys == [b"k0", b"k1", b"k2", b"k3", b"k4"]


def test_share_is_void_once_its_partition_runs_under_another_fence() -> None:
    (share,) = shares(90, (999, 3))
    partition = share.owner.partition
    assert is_valid(share)
    partition.acquire()
    assert not is_valid(share)
    # The same worker again, the same watermark: its records were fetched for the fence before.
    partition.acquired(Acquired(Fence(2, "me", "bundle"), 0, None), 0, 1000)
    partition.sought()
    assert partition.phase is Phase.RUN
    assert not is_valid(share)


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.RUN])
def test_share_is_void_once_its_partition_has_left_run(phase: Phase) -> None:
    (share,) = shares(90, (999, 3))
    share.owner.partition.phase = phase
    assert not share.valid


def test_owner_type_has_what_shares_are_made_of() -> None:
    assert all(hasattr(Owner, name) for name in ("room", "take"))
