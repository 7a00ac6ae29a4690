"""Each case runs twice: by the native module, where it was built, and by its twin in Python."""

from __future__ import annotations

import pytest

from keyfold.worker import native

NOT_BUILT = "the native module is not there: no C++ compiler when keyfold was installed"


@pytest.fixture(scope="session")
def built() -> None:
    """Skip what only the native module can do."""
    if not native.available():
        pytest.skip(NOT_BUILT)


@pytest.fixture(scope="session", params=["native", "python"])
def way(request: pytest.FixtureRequest) -> str:
    """Name who does it: the native module or Python."""
    if request.param == "native" and not native.available():
        pytest.skip(NOT_BUILT)
    return str(request.param)
