"""The oracle's word on one schedule, and the campaign's own look at what the oracle cannot see.

Owns how keyfold's verification is called here: through the archive where a fault took records out
of the log. Used by run.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

from campaign.archive import Archive, reading_through
from campaign.scene import Scene
from keyfold.worker.verify import verification
from keyfold.worker.verify.findings import Findings
from keyfold.worker.verify.verification import Target

VIOLATIONS = (
    "lost", "duplicates", "conflicts", "out_of_order", "cross_key", "wrong_outputs", "unexpected",
    "wrong_states",
)  # fmt: skip


def judge(scene: Scene, archive: Archive, exactly_once: bool, require_from: int | None) -> Findings:
    """Refold all that was served and compare. Raises Crash when it cannot be compared.

    `require_from`: every event from this offset on must have been predicted, by whomever.
    """
    target = Target(
        bundle=scene.bundle.path,
        kafka=scene.kafka.address,
        input=scene.input,
        output=scene.output,
        dead_letter=scene.dead_letter,
        group=scene.group,
        redis=scene.store.url,
        exactly_once=exactly_once,
        require_from=require_from,
    )
    with patch.object(verification, "KafkaLog", reading_through(archive)):
        return verification.verify(target)


def violations(findings: Findings) -> Mapping[str, int]:
    """Return what was found wrong, by kind; empty when all is as it must be."""
    report: dict[str, Any] = findings.to_json()
    kinds = [k for k in VIOLATIONS if k != "duplicates" or findings.exactly_once]
    found = {kind: int(report[kind]) for kind in kinds if report[kind]}
    if not found and not report["clean"]:
        found = {"other": int(report["violations"])}  # a kind that this file does not know yet
    return found
