"""One partition's part of a micro-batch, and how a micro-batch is put together from several.

Owns what is taken from whom. Knows owners and their waiting records, nothing of what becomes of
them. Called by worker/pipeline.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyfold.export.events import MAX_KEY_BYTES, why_no_key
from keyfold.worker.owner import Owner
from keyfold.worker.protocol import Fence, Phase
from keyfold.worker.records import Found, Records


@dataclass(slots=True)
class Share:
    """One partition's part of a micro-batch."""

    owner: Owner  # whose records they are
    fence: Fence | None  # under which they were taken; under another one they are void
    records: Records  # in offset order
    first: int  # number of its first row in the micro-batch
    found: Found | None = None  # the slots that its keys had when they were looked up
    _keys: list[bytes | None] | None = None  # of the records, once somebody asked

    @property
    def keys(self) -> list[bytes | None]:
        """Return the records' keys. The usual micro-batch needs none of them."""
        if self._keys is None:
            self._keys = self.records.key_column()
        return self._keys

    def look_up(self, index: dict[bytes, int], most_key_bytes: int = MAX_KEY_BYTES) -> list[bytes]:
        """Find the keys' slots in `index`; return the keys that have none, each once.

        Longer ones than `most_key_bytes` are none.
        """
        self.found = self.records.find(index)
        keys = self.keys if self.found.unknown else []
        unknown = dict.fromkeys(keys[row] for row in self.found.unknown)
        return [
            key for key in unknown if key is not None and why_no_key(key, most_key_bytes) is None
        ]

    @property
    def valid(self) -> bool:
        """Whether the partition still runs under the same fence."""
        partition = self.owner.partition
        return partition.phase is Phase.RUN and partition.fence is self.fence

    @property
    def number(self) -> int:
        """The partition's number."""
        return self.owner.partition.number

    @property
    def rows(self) -> slice:
        """Its rows in the micro-batch."""
        return slice(self.first, self.first + len(self.records))


def take(owners: Sequence[Owner], most: int, most_bytes: int | None = None) -> list[Share]:
    """Take at most `most` waiting records (one per partition at least), fairly over partitions.

    `most_bytes`: of them together; None: as many as an owner gives.
    """
    ready = sorted(
        ((min(owner.room(), len(owner.waiting)), owner) for owner in owners),
        key=lambda item: item[0],
    )
    ready = [item for item in ready if item[0]]
    shares: list[Share] = []
    first = 0
    for place, (available, owner) in enumerate(ready):
        # What a partition with little to do leaves over goes to those with more.
        count = min(available, max((most - first) // (len(ready) - place), 1))
        records = owner.take(count, None if most_bytes is None else most_bytes // len(ready))
        shares.append(Share(owner, owner.partition.fence, records, first))
        first += len(records)
    return shares
