"""Puts the campaign's package on the path; needs services that it starts itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
