"""An environment of its own for every Python peer, made from its lock and kept under .cache.

Owns making them and noticing that a lock changed. Knows nothing of Kafka or of what the peers do.
Called by catalogue.py; `lock` by hand after editing a requirements.in:

    .venv/bin/python tests/bench/peers/environments.py

"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / ".cache" / "peers"
UV = ROOT / ".cache" / "lock" / "bin" / "uv"  # made by `make lock`
INSTALL_TIMEOUT_S = 1200.0


def python_of(name: str) -> Path:
    """Return the interpreter of a peer's environment, whether it was made or not."""
    return CACHE / name / "bin" / "python"


def make(name: str) -> Path:
    """Make the environment of a peer unless it stands, and return its folder.

    Raises: SystemExit, quoting pip, when it cannot be installed.
    """
    folder, lock = CACHE / name, HERE / name / "requirements.txt"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {platform.python_version()}\n"
    stamp = folder / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            return folder
        count = len(lock.read_text().splitlines())
        print(f"peer {name}: installing {count} packages of its lock", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python_of(name)), "-m", "pip", "install", "--disable-pip-version-check"]
        # The lock is whole: a package that is not in it must not come in unseen.
        _run([*pip, "--quiet", "--no-deps", "--only-binary", ":all:", "-r", str(lock)])
        _run([str(python_of(name)), "-m", "pip", "check"])
        stamp.write_text(wanted)
    return folder


def lock(name: str) -> None:
    """Write requirements.txt anew from requirements.in, with the newest versions that fit."""
    if not UV.is_file():
        raise SystemExit(f"locks are written with {UV}: run `make {UV.relative_to(ROOT)}` first")
    flags = ["--quiet", "--upgrade", "--no-annotate", "--no-header", "--no-emit-find-links"]
    version = ["--universal", "--python-version", "3.11", "--no-build"]
    folder = HERE / name
    source, target = str(folder / "requirements.in"), str(folder / "requirements.txt")
    _run([str(UV), "pip", "compile", *flags, *version, "-o", target, source])


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-2000:]
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{said}")


if __name__ == "__main__":
    for found in sorted(HERE.glob("*/requirements.in")):
        lock(found.parent.name)
        count = len(found.with_suffix(".txt").read_text().splitlines())
        print(f"{found.parent.name}: {count} packages")
