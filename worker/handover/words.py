"""PURE: what a change of the record of handovers means, in a line for a worker's log.

Owns those words; the record is ownership.py's. Called by listener.py.
"""

from __future__ import annotations

from keyfold.worker.handover.ownership import Handovers, Proposal


def told(before: Handovers, after: Handovers) -> str:
    """Return what has changed, "" when it is nothing that a person need know."""
    lines = []
    if after.logs != before.logs:
        lines.append("the log's offsets begin anew: handovers before that count no more")
    else:
        begun = (group for group in after.waiting if group not in before.waiting)
        lines += [f"group {group!r} has begun and waits to be given the outputs" for group in begun]
        lines += [
            f"group {seam.group!r} has the outputs from offset {seam.offset} on"
            for seam in after.seams[len(before.seams) :]
        ]
    if after.proposal != before.proposal:
        lines += [_proposed(before.proposal, after.proposal, agreed=after.seams != before.seams)]
    return "; ".join(filter(None, lines))


def _proposed(before: Proposal | None, after: Proposal | None, *, agreed: bool) -> str:
    if after is None:
        return "" if agreed or before is None else (
            f"the proposal to give group {before.taker!r} the outputs is withdrawn"
        )  # fmt: skip
    if before is None or before.number != after.number:
        return (
            f"it is proposed that group {after.taker!r} has the outputs from offset "
            f"{after.offset} on, in place of {after.giver!r}"
        )
    ready = [repr(group) for group in after.ready if group not in before.ready]
    return f"group {' and '.join(ready)} stands ready at offset {after.offset}" if ready else ""
