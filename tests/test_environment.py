"""Every test begins with the same environment, whoever starts it and whatever ran before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__)


def test_what_decides_last_digits_is_settled_before_any_test() -> None:
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert "KEYFOLD_WORKER__SAVE_EVERY_MS" not in os.environ


def test_a_setting_of_the_shell_reaches_no_test() -> None:
    test = f"{HERE}::{test_what_decides_last_digits_is_settled_before_any_test.__name__}"
    shell = {"KEYFOLD_WORKER__SAVE_EVERY_MS": "9", "TF_ENABLE_ONEDNN_OPTS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=HERE.parents[1], env={**os.environ, **shell}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
