"""The native module is there where it could be built, and says so only where it may be used."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from keyfold.worker import native


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Forget what available() has found out, before and after."""
    native.available.cache_clear()
    yield
    native.available.cache_clear()


@pytest.mark.skipif(not os.environ.get("CI"), reason="elsewhere it is optional")
def test_in_ci_it_is_there_if_there_is_a_compiler() -> None:
    compiler = (sysconfig.get_config_var("CXX") or "g++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}: what is tested is Python alone")
    assert native.available(), f"{compiler} is there, but the extension was not built"


@pytest.mark.usefixtures("asked_anew")
def test_it_is_not_available_where_it_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_codec", None)
    assert not native.available()


@pytest.mark.usefixtures("built", "asked_anew")
def test_it_is_not_available_beside_an_orjson_that_writes_numbers_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Older:
        """orjson as it was before it wrote a plus into exponents."""

        OPT_SERIALIZE_NUMPY = orjson.OPT_SERIALIZE_NUMPY

        @staticmethod
        def dumps(numbers: Any, option: int) -> bytes:
            return orjson.dumps(numbers, option=option).replace(b"e+", b"e")

    monkeypatch.setattr(native, "orjson", Older)
    assert not native.available()
