"""The bundles of a campaign: one per rule about tombstones and expiry, and a foreign one.

Owns a folder of tiny bundles, each made when it is first wanted. Used by scene.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle


class Bundles:
    """Makes bundles and keeps them."""

    def __init__(self, folder: Path) -> None:
        """Prepare to write into `folder`."""
        self._folder = folder
        self._made: dict[tuple[str, int | None, int], Bundle] = {}

    def get(self, tombstone: str, reset_after_ms: int | None, seed: int = 0) -> Bundle:
        """Return the bundle with these rules; `seed` makes its weights."""
        wanted = tombstone, reset_after_ms, seed
        if wanted not in self._made:
            rule = cast(Literal["reject", "reset"], tombstone)
            self._made[wanted] = make_tiny_bundle(
                self._folder, tombstone=rule, reset_after_ms=reset_after_ms, seed=seed
            )
        return self._made[wanted]
