"""What several modules of these tests wrap: a fixture of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from keyfold.export import bundle as contract
from keyfold.export.cli import main


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Wrap a graph; return the bundle and what was printed, or the error line."""

    def wrap(model: Any, *arguments: str) -> Any:
        file = tmp_path / "model.onnx"
        onnx.save(model, file)
        status = main(["wrap", str(file), *arguments, "--out", str(tmp_path / "bundles")])
        printed = capsys.readouterr()
        made = list((tmp_path / "bundles").glob("*")) if (tmp_path / "bundles").exists() else []
        if status:
            assert not made, "nothing may be left behind"
            assert printed.err.count("\n") == 1, printed.err
            return printed.err
        (path,) = made
        return contract.load(path), printed.out

    return wrap
