"""The native module is there where it could be built, and says so only where it may be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from keyfold.worker import native
from keyfold.worker.app import _is_native
from keyfold.worker.errors import SetUpError


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


LOADED_FROM_AN_EMPTY_FILE = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import spec_from_file_location

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "keyfold.worker.native._codec":
            return spec_from_file_location(name, loader=ExtensionFileLoader(name, sys.argv[1]))

sys.meta_path.insert(0, Finder())
from keyfold.worker import native
print(native.available(), native.broken(), native.missing())
"""


def test_a_module_that_does_not_load_is_told_from_one_that_was_not_built(tmp_path: Path) -> None:
    empty = tmp_path / "_codec.so"
    empty.touch()
    command = [sys.executable, "-c", LOADED_FROM_AN_EMPTY_FILE, str(empty)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("False True it does not load: ")
    assert "_codec.so" in said


@pytest.mark.usefixtures("asked_anew")
def test_why_it_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_codec", None)
    monkeypatch.setattr(native, "_missing", native.NOT_BUILT)
    assert (native.missing(), native.broken()) == ("it was not built", False)
    with pytest.raises(SetUpError, match="expected the native module, got none: it was not built"):
        _is_native("on")
    assert not _is_native("auto")
