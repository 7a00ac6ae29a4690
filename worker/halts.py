"""PURE: what a HALT says: what is wrong, expected and got, and the operator's command for it.

Owns the words of every cause of a HALT, so that each names a command that resolves it; README's
table lists them. Called by worker/partition.py and worker/pipeline.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from keyfold.worker.protocol import Fingerprint, Held, Refused


@dataclass(frozen=True, slots=True)
class Halts:
    """The HALT messages of one partition."""

    settings: str  # the worker's settings file, as the operator names it
    number: int  # of the partition

    def refused(self, refused: Refused) -> str:
        """Redis refused the fence."""
        if refused.what == "missing":
            return (
                "the state is gone from Redis, yet the group has committed an offset: restore "
                f"Redis or a snapshot ({self._restore()}), fold it again without emitting "
                f"({self.command('rebuild')}), or give it up ({self._reset()})"
            )
        where = f"expected {refused.expected}, got {refused.got} in Redis"
        if refused.what == "partitions":
            return (
                "the topic's number of partitions changed, keys moved between them: "
                f"{where}; keyfold-state reset {self.settings} --all --to earliest"
            )
        if refused.what == "topic":
            return (
                f"the topic was created anew: {where}; keyfold-state reset {self.settings} --all "
                "--to earliest|latest, or if the new topic holds the same records: "
                f"keyfold-state adopt {self.settings} --all"
            )
        if refused.what == "bundle":
            # Behind the + stands the id of worker/emission.py's rule.
            both = refused.expected + refused.got
            emit = ", or was kept under other settings in [emit] (behind the +)" * ("+" in both)
            return (
                f"the state belongs to another bundle{emit}: {where}; serve this one under a new "
                f"group, fold its states anew ({self.command('rebuild')}, or "
                "worker.on_bundle_change), keep them for a fine-tune of it, with at-least-once "
                f"outputs ({self.command('adopt', ' --inherit BUNDLE')}), or {self._reset()}"
            )
        if refused.what == "layout":
            return f"the state was written in another layout: {where}; {self.command('rebuild')}"
        return f"key states are missing or too many: {where}; {self._again()}"

    def states_missing(self, held: Held) -> str:
        """Key states vanished from, or were put into, a partition's hash."""
        return self.refused(Refused("states", str(held.keys), str(held.found)))

    def damaged(self, why: str) -> str:
        """A stored state cannot be what was saved."""
        return f"a stored state is damaged: {why}; {self._again()}"

    def events_lost(self, watermark: int, log_start: int) -> str:
        """Retention took events before they were folded."""
        return (
            f"the log starts at offset {log_start} but the state ends at {watermark}: events in "
            f"between are lost to retention; {self._reset()}, or go on with marked predictions "
            "(worker.on_lost_range = mark-and-continue)"
        )

    def log_too_short(self, offset: int) -> str:
        """The log ends below the saved state."""
        return (
            f"the log ends before offset {offset}, below what was folded or emitted "
            f"(topic truncated or created anew?); {self._reset()}"
        )

    def another_record(self, expected: Fingerprint) -> str:
        """The log holds another record where the last applied one was."""
        return (
            f"the record at offset {expected.offset} is not the one last applied "
            f"(topic created anew?); {self._reset()}, or keep the state all the same: "
            f"{self.command('adopt', '')}"
        )

    def unreadable(self, offset: int, why: str) -> str:
        """The log is damaged."""
        return (
            f"the log cannot be read from offset {offset} on: {why}; restore it from a replica, or "
            f"give up what stands there: {self._reset()}"
        )

    def outputs_unknown(self, watermark: int, known: int, log_end: int) -> str:
        """The group offset that exactly-once outputs rely on is gone."""
        return (
            "exactly-once outputs: the group offset, which a transaction had set to at least "
            f"{known}, is gone or was set by another program: of the events from {watermark} to "
            f"{log_end - 1} nobody knows which predictions are out; to emit them (again): "
            f"{self.command('adopt', '')}"
        )

    def command(self, verb: str, rest: str = " [--from earliest|OFFSET|SNAPSHOT]") -> str:
        """Return an operator's command for this partition."""
        return f"keyfold-state {verb} {self.settings} --partition {self.number}{rest}"

    def _again(self) -> str:
        return f"restore a snapshot ({self._restore()}) or {self.command('rebuild')}"

    def _restore(self) -> str:
        return f"keyfold-state restore {self.settings} SNAPSHOT"

    def _reset(self) -> str:
        return self.command("reset", " --to earliest|latest|OFFSET")
