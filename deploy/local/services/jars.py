"""The jars of a real Apache Kafka: checks for Java and Maven, one download into the cache.

Owns `.cache/kafka/VERSION` (git-ignored) and its `libs`. Knows nothing of topics, configuration
or how a broker is started. Called by kafka.py and prepare_kafka.py.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .child import ServiceError

DEFAULT_VERSION = "4.1.1"
JAVA_NEEDED = 17  # Kafka 4 brokers; 3.9 would run on 11
FETCH_TIMEOUT_S = 600

_ROOT = Path(__file__).resolve().parents[3]
_POM = _ROOT / "deploy" / "kafka" / "pom.xml"


def cache_folder(version: str) -> Path:
    """Return where the jars of one version belong; KEYFOLD_CACHE moves it."""
    return Path(os.environ.get("KEYFOLD_CACHE") or _ROOT / ".cache") / "kafka" / version


def class_archive(version: str) -> Path:
    """Return where the class-data archive of one version belongs; only one Java can read it."""
    return cache_folder(version) / f"classes-{_java_version(find_java() or 'java')}.jsa"


def missing_for_kafka(version: str) -> list[str]:
    """Return one sentence for each thing that keeps a real broker from running here."""
    missing = []
    if find_java() is None:
        missing.append(
            f"Java {JAVA_NEEDED} or newer (Debian: apt-get install openjdk-17-jre-headless)"
        )
    if not (cache_folder(version) / "libs").is_dir() and find_maven() is None:
        missing.append(f"Maven, to fetch the jars of Kafka {version} (apt-get install maven)")
    return missing


@cache
def find_java() -> str | None:
    """Return a Java program that runs and is new enough, JAVA_HOME's first."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (f"{home}/bin/java" if home else None, shutil.which("java")):
        if candidate is not None and _java_release(candidate) >= JAVA_NEEDED:
            return candidate
    return None


@cache
def find_maven() -> str | None:
    """Return a Maven program that runs."""
    candidate = shutil.which("mvn")
    return candidate if candidate and _output_of(candidate, "-v") is not None else None


def fetch_jars(version: str) -> Path:
    """Return the folder with the jars of `version`, downloading them on the first call.

    Safe to call from several programs at once. Raises: ServiceError when something is missing
    or the download fails, quoting Maven.
    """
    libs = cache_folder(version) / "libs"
    if not libs.is_dir():
        missing = missing_for_kafka(version)
        if missing:
            raise ServiceError(f"Apache Kafka {version} cannot run here: missing {missing}")
        with locked_cache(version):
            if not libs.is_dir():
                _download(version, libs)
    return libs


@contextmanager
def locked_cache(version: str) -> Iterator[None]:
    """Hold the cache of one version against other programs; not to be nested."""
    folder = cache_folder(version)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel however we end
        yield


def _download(version: str, libs: Path) -> None:
    unfinished = libs.with_name("libs.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [
        *(find_maven() or "mvn", "-B", "-q", "-f", str(_POM), "dependency:copy-dependencies"),
        *(f"-Dkafka.version={version}", f"-Dkafka.libs={unfinished}"),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise ServiceError(f"{' '.join(command)} took more than {FETCH_TIMEOUT_S} s") from late
    if done.returncode != 0 or not any(unfinished.glob("kafka-clients-*.jar")):
        said = (done.stdout + done.stderr)[-3000:]
        raise ServiceError(f"{' '.join(command)} failed with {done.returncode}:\n{said}")
    unfinished.rename(libs)


def _java_release(program: str) -> int:
    return int(_java_version(program).partition(".")[0])


@cache
def _java_version(program: str) -> str:
    """Return the version as in 17.0.15, or 0 for a program that does not run."""
    found = re.search(r'version "(\d[\d._]*)', _output_of(program, "-version") or "")
    return found.group(1) if found else "0"


def _output_of(*command: str) -> str | None:
    """Return what a command prints, or None when it cannot run or fails."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr if done.returncode == 0 else None
    return None
