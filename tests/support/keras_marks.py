"""What a module of tests with a real Keras says of itself: `pytestmark = KERAS`.

Owns one list of marks, so that a warning of Keras's own is excused in one place. It does not import
Keras: a module that needs the training extra says so by `pytest.importorskip`.
"""

from __future__ import annotations

import pytest

KERAS = [
    pytest.mark.tensorflow,
    # Keras 3.15 with numpy 2 warns in its own code when weights are read; gone when it does not.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
