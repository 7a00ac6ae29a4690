"""The benchmarks' folder on the path, where `peers` is found, for the tests beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
