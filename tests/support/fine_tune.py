"""A bundle that names another one as its parent, as keyfold-train --parent and keyfold-export do.

Owns the provenance that tests of inherited states need; the models come from tiny_bundle. Imported
as `from fine_tune import fine_tuned`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.lineage import PARENT


def fine_tuned(folder: Path, parent: Bundle, seed: int = 77, **shape: Any) -> Bundle:
    """Make a bundle with other weights that names `parent`; `shape` as for make_tiny_bundle."""
    child = make_tiny_bundle(folder, seed=seed, **shape)
    return named(child, {"run": "a-run", "bundle": parent.id})


def named(bundle: Bundle, parent: Any, **provenance: Any) -> Bundle:
    """Have a bundle's provenance say what its parent is; its id stays."""
    path = bundle.path / contract.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["provenance"] |= {PARENT: parent, **provenance}
    path.write_text(json.dumps(manifest))
    found = contract.load(bundle.path)
    assert found.id == bundle.id
    return found
