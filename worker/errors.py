"""The worker's own errors, under the two roots of the contract (Reject, Crash).

A HALT is not an error: it is a phase of one partition (worker/partition.py); the others go on.
"""

from __future__ import annotations

from keyfold.export.errors import Crash, Reject

__all__ = ["Crash", "NotOwner", "Reject", "StartUnset", "TopicError"]


class NotOwner(Crash):
    """Another worker owns the partition now: this one must stop before it does harm."""


class StartUnset(Crash):
    """There is no saved state and the settings do not say where to start."""


class TopicError(Crash):
    """A topic is missing or has another number of partitions than its input."""
