"""training/MODELS.md: every training.toml that stands there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from keyfold.training.config import read_config

PAGE = Path(__file__).parents[2] / "training" / "MODELS.md"
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
WHOLE = [block for block in BLOCKS if "[split]" in block]


def test_there_is_one_for_each_kind_of_answer() -> None:
    assert len(WHOLE) == 6


@pytest.mark.parametrize("block", WHOLE, ids=lambda block: block.splitlines()[0])
def test_a_config_of_the_page_is_read(tmp_path: Path, block: str) -> None:
    file = tmp_path / "training.toml"
    file.write_text(block, encoding="utf-8")
    read_config(file, environment={})
