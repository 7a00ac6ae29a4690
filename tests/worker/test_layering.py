"""The one-way dependency rule, as a running program sees it.

Import-linter reads the sources; importing the app shows what is really loaded. Each check runs in
an interpreter of its own, because this one may have loaded anything.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@functools.cache
def loaded_by(module: str) -> frozenset[str]:
    """Return the top-level names of all modules that importing `module` loads."""
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=True, timeout=60, cwd="/",
    )  # fmt: skip
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    packages = {name.partition(".")[0] for name in names}
    return frozenset(packages | {name for name in names if name.startswith("keyfold.")})


def test_the_worker_s_app_does_not_load_tensorflow() -> None:
    loaded = loaded_by("keyfold.worker.app")
    assert "faust" in loaded
    assert not loaded & {"tensorflow", "keras", "tf2onnx", "keyfold.training"}


def test_the_contract_loads_numpy_and_json_libraries_only() -> None:
    loaded = loaded_by("keyfold.export.bundle, keyfold.export.settings")
    assert not loaded & {
        "tensorflow", "keras", "onnx", "onnxruntime", "faust", "aiokafka", "redis", "rich",
        "confluent_kafka", "keyfold.worker", "keyfold.training",
    }  # fmt: skip


def test_the_pure_core_loads_no_io() -> None:
    pure = ("partition", "phases", "halts", "protocol", "schedule")
    loaded = loaded_by(", ".join(f"keyfold.worker.{name}" for name in pure))
    assert not loaded & {"asyncio", "faust", "redis", "onnxruntime", "aiokafka"}
    assert not loaded & {"keyfold.worker.owner", "keyfold.worker.store", "keyfold.worker.saver"}


def test_the_worker_s_settings_load_without_faust() -> None:
    # `keyfold-worker --help` and a wrong setting must answer at once.
    assert not loaded_by("keyfold.worker.cli") & {"faust", "onnxruntime", "aiokafka"}


def test_every_package_is_in_the_distribution() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        "keyfold." + ".".join(found.parent.relative_to(ROOT).parts)
        for top in ("worker", "export", "training")
        for found in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(told) == sorted(folders)


@pytest.mark.parametrize("name", ["worker", "export", "training"])
def test_no_module_of_the_app_exists_twice(name: str) -> None:
    assert name not in loaded_by("keyfold.worker.app")


def test_import_linter_keeps_every_contract() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout
