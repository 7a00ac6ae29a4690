"""The download of a real broker's jars: once, whole, and with an answer when it cannot be done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local.services import ServiceError, fetch_jars, jars, missing_for_kafka

MAVEN = """#!/bin/sh
for word in "$@"; do case $word in -Dkafka.libs=*) libs=${{word#-Dkafka.libs=}};; esac; done
[ "$1" = -v ] && exit 0
echo run >> {runs}
mkdir -p "$libs" && : > "$libs/kafka-clients-9.9.9.jar"
{end}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move the cache and forget which programs were found."""
    monkeypatch.setenv("KEYFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("local.services.jars.find_java", lambda: "java")
    monkeypatch.setattr("local.services.jars.find_maven", jars.find_maven.__wrapped__)
    return tmp_path


def put_maven(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str = "exit 0") -> Path:
    """Put a stand-in for Maven on the path; return the file with a line for each run."""
    runs = folder / "runs"
    program = folder / "mvn"
    program.write_text(MAVEN.format(runs=runs, end=end))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return runs


def test_jars_are_downloaded_once_by_simultaneous_callers(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = put_maven(cache, monkeypatch)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(fetch_jars, ["9.9.9"] * 4))
    assert runs.read_text() == "run\n"
    assert {folder.is_dir() for folder in found} == {True}


def test_a_failed_download_quotes_maven_and_leaves_no_jars(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_maven(cache, monkeypatch, end="echo no such artifact; exit 3")
    with pytest.raises(ServiceError, match=r"(?s)failed with 3.*no such artifact"):
        fetch_jars("9.9.9")
    assert not (jars.cache_folder("9.9.9") / "libs").exists()


def test_everything_missing_is_named_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.services.jars.find_java", lambda: None)
    monkeypatch.setattr("local.services.jars.find_maven", lambda: None)
    assert [line.split()[0] for line in missing_for_kafka("9.9.9")] == ["Java", "Maven,"]
    with pytest.raises(ServiceError, match=r"9\.9\.9.*Java.*Maven"):
        fetch_jars("9.9.9")
