"""Redis: the record of an output's handovers, one value per (input, output, partition).

Owns its name and the one way in which it changes: compare-and-set of the whole value, so that every
decision (ownership.py) is taken by exactly one of those who try. It lies outside every
group's state. Called by worker/answers.py and keyfold-state.
"""

from __future__ import annotations

from typing import Any, cast

from keyfold.worker.errors import Crash
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.redis.client import Script
from keyfold.worker.store import whole

# KEYS: the record. ARGV: the value that it must have ("": none), the one that it shall have.
# Returns what it has then.
_SWAP = """
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""


def handover_name(topic: str, output: str, partition: int) -> str:
    """Return the name of a partition's record."""
    return f"keyfold-handover:{{{topic}:{output}:{partition}}}"


class HandoverStore:
    """The records, for a worker. Safe to share between tasks."""

    def __init__(self, redis: Any, topic: str, output: str) -> None:
        self._redis, self._topic, self._output = redis, topic, output
        self._swap = Script(redis, _SWAP)

    async def read(self, partition: int) -> Handovers:
        """Return a partition's record, an empty one where there is none. Raises Crash."""
        name = handover_name(self._topic, self._output, partition)
        return _parsed(name, await whole(self._redis.get(name)))

    async def swap(self, partition: int, before: Handovers, after: Handovers) -> Handovers:
        """Replace a record that is still `before`; return what is held then.

        May be repeated after a lost reply: no content comes twice.
        """
        name = handover_name(self._topic, self._output, partition)
        arguments = [_text(before), str(after)]
        return _parsed(name, await whole(self._swap(keys=[name], args=arguments)))


class HandoverAdmin:
    """The same records, for an operator's command."""

    def __init__(self, redis: Any, topic: str, output: str) -> None:
        self._redis, self._topic, self._output = redis, topic, output

    def read(self, partition: int) -> Handovers:
        """Return a partition's record, an empty one where there is none."""
        name = handover_name(self._topic, self._output, partition)
        return _parsed(name, self._redis.get(name))

    def swap(self, partition: int, before: Handovers, after: Handovers) -> Handovers:
        """Replace a record that is still `before`; return what is held then."""
        name = handover_name(self._topic, self._output, partition)
        return _parsed(name, self._redis.eval(_SWAP, 1, name, _text(before), str(after)))


def _text(record: Handovers) -> str:
    return str(record) if record.revision else ""


def _parsed(name: str, value: Any) -> Handovers:
    try:
        return Handovers.parse(cast(bytes, value or b"").decode())
    except ValueError as error:
        raise Crash(f"Redis: {name}: {error}: restore it as it was") from error
