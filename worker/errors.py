"""The worker's own errors, under the two roots of the contract (Reject, Crash).

A HALT is not an error: it is a phase of one partition (worker/partition.py); the others go on.
"""

from __future__ import annotations

from keyfold.export.errors import Crash, Reject

__all__ = ["Crash", "NotOwner", "RedisRefuses", "Reject", "SetUpError", "StartUnset", "TopicError"]


class SetUpError(Crash):
    """Something must be set right by a person before a restart can help."""


class NotOwner(Crash):
    """Another worker owns the partition now: this one must stop before it does harm."""


class StartUnset(SetUpError):
    """There is no saved state and the settings do not say where to start."""


class TopicError(SetUpError):
    """A topic is missing or has another number of partitions than its input."""


class RedisRefuses(SetUpError):
    """Redis does not let this worker in, or not with these rights."""
