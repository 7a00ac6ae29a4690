"""What of a worker's settings can be judged without asking anybody: whether they fit the bundle.

Owns that look. It loads neither Faust nor ONNX Runtime and asks neither Kafka nor Redis: several
workers would take ten seconds to start and to refuse the same, each for itself. Called by
worker/cli.py, in a program of its own, before processes.py starts any.
"""

from __future__ import annotations

from keyfold.export import bundle as contract
from keyfold.worker.config import Config
from keyfold.worker.emission import Emission
from keyfold.worker.key_field import configured_key_field, refuse_packed
from keyfold.worker.passthrough import check_fits


def look(config: Config) -> int:
    """Return 0 where bundle and settings fit each other. Raises Crash."""
    manifest = contract.load(config.worker.bundle).manifest
    Emission.of(config.emit, manifest.outputs)
    if config.worker.passthrough:
        check_fits(config.worker.passthrough, manifest.outputs)
    if field := configured_key_field(config):
        refuse_packed(field, manifest.events)
    return 0
