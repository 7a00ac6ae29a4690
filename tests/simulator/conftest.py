"""Makes `simulator` importable: this folder is a package beside the tests that use it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
