"""Build the Kafka Streams peer: `python tests/bench/peers/kafka_streams/build.py`, or `build()`.

Owns `.cache/peers/kafka_streams` (git-ignored; KEYFOLD_CACHE moves it): classes and jars of one
digest of the sources and the pom, made by Maven when they changed. Knows nothing of topics or
settings: the peer reads those from its environment. Called by the driver of the peers.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Run as a plain script too; `deploy` is on the path of pytest and mypy anyway.
sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "deploy"))

from local.services import ServiceError
from local.services.jars import find_java, find_maven

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[3]
BUILD_TIMEOUT_S = 600
# The collector for throughput; heap enough for the cache, the buffers and the producer.
JVM = ("-XX:+UseParallelGC", "-Xms1g", "-Xmx1g")
_LOGS = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    # It warns of a state folder below /tmp, which is where a benchmark's belongs.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.streams.processor.internals.StateDirectory=error",
)
# The native libraries of RocksDB and ONNX Runtime are unpacked into java.io.tmpdir and left there
# by SIGKILL: the state folder goes with the run. `exec` keeps the number of the program.
_IN_STATE_DIR = 'exec "$0" "-Djava.io.tmpdir=$PEER_STATE_DIR" "$@"'


def build() -> list[str]:
    """Return the command line of the peer, building it first when the sources changed.

    Raises: ServiceError when Java 17, Maven or a compiler is missing or fails, quoting Maven.
    """
    java = find_java()
    if java is None:
        raise ServiceError("the Kafka Streams peer: expected Java 17 or newer, found none")
    home = Path(os.environ.get("KEYFOLD_CACHE") or _ROOT / ".cache") / "peers" / "kafka_streams"
    home.mkdir(parents=True, exist_ok=True)
    made = home / _digest()
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel however we end
        if not made.is_dir():
            _build(home, made)
    path = os.pathsep.join((str(made / "classes"), str(made / "libs" / "*")))
    return ["sh", "-c", _IN_STATE_DIR, java, *JVM, *_LOGS, "-cp", path, "keyfold.peer.Peer"]


def _digest() -> str:
    """Return a name that changes with any source and with the pom."""
    sources = sorted(_HERE.glob("src/**/*.java"))
    known = hashlib.sha256()
    for path in (_HERE / "pom.xml", *sources):
        content = path.read_bytes()
        known.update(f"{path.relative_to(_HERE)}:{len(content)}:".encode() + content)
    return known.hexdigest()[:16]


def _build(home: Path, made: Path) -> None:
    maven = find_maven()
    if maven is None:
        raise ServiceError("the Kafka Streams peer: expected Maven, found none")
    unfinished = home / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [
        *(maven, "-B", "-q", "-f", str(_HERE / "pom.xml"), f"-Dpeer.build={unfinished}"),
        *("compile", "dependency:copy-dependencies"),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise ServiceError(f"{' '.join(command)} took more than {BUILD_TIMEOUT_S} s") from late
    if done.returncode != 0 or not any((unfinished / "libs").glob("kafka-streams-*.jar")):
        said = (done.stdout + done.stderr)[-3000:]
        raise ServiceError(f"{' '.join(command)} failed with {done.returncode}:\n{said}")
    for former in home.iterdir():  # 200 MB each
        if former.is_dir() and former != unfinished:
            shutil.rmtree(former)
    unfinished.rename(made)


if __name__ == "__main__":
    try:
        print(*build(), sep="\n")
    except ServiceError as error:
        sys.exit(str(error))
