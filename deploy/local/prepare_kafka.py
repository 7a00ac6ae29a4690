"""Fill the cache for real Kafka brokers: `python deploy/local/prepare_kafka.py [VERSION...]`.

Fetches the jars and writes a class-data archive, which takes about a third off every later start.
Nothing depends on it: a broker started without it fetches its jars itself. Called by `make test`,
so that a first download is seen and not mistaken for a test that hangs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Run as a plain script; `deploy` is on the path of pytest and mypy anyway.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local.services import (
    EMBEDDED,
    FAST_START,
    ApacheKafka,
    ServiceError,
    fetch_jars,
    missing_for_kafka,
    wanted_version,
)
from local.services.jars import class_archive, locked_cache


def main(arguments: list[str]) -> None:
    """Prepare each version, saying what happens; what is missing is said, not raised."""
    parser = argparse.ArgumentParser(description="Fetch Apache Kafka's jars for tests, once.")
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="such as 3.9.1")
    for version in parser.parse_args(arguments).versions or [wanted_version()]:
        if version == EMBEDDED:
            continue
        missing = missing_for_kafka(version)
        if missing:
            print(f"Apache Kafka {version} cannot run here: missing {' and '.join(missing)}")
            continue
        print(f"Apache Kafka {version}: jars (about 45 MB, once) ...", end=" ", flush=True)
        fetch_jars(version)
        print("ready", flush=True)
        archive_classes(version)


def archive_classes(version: str) -> None:
    """Write the class-data archive of `version` unless it is there, by one short broker run."""
    archive = class_archive(version)
    with locked_cache(version):
        if archive.exists():
            return
        print(f"Apache Kafka {version}: class-data archive (once) ...", end=" ", flush=True)
        begun = time.monotonic()
        unfinished = archive.with_name("classes.unfinished")
        unfinished.unlink(missing_ok=True)
        jvm = (*FAST_START, f"-XX:ArchiveClassesAtExit={unfinished}", "-Xlog:cds=off")
        with ApacheKafka(version, jvm=jvm) as broker:
            broker.create_topic("loads-the-classes-of-a-topic")
            broker.stop()  # the archive is written on the way out
        if unfinished.exists():
            unfinished.rename(archive)
            print(f"ready after {time.monotonic() - begun:.0f} s", flush=True)
        else:
            print("this Java writes none, going on without", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServiceError as error:
        # The tests decide what a missing broker means: a failure in CI, else the stand-in.
        print(error)
        sys.exit(1 if os.environ.get("CI") else 0)
