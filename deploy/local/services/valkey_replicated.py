"""A Valkey primary, its replica and the Sentinels that replace the one by the other.

Owns their configuration, the short times of a test's failover, and the ways to make a replica
miss writes. Replication is asynchronous: what the replica missed is lost by a failover, which is
what these services are for. Used through `services`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import redis

from .child import LOOPBACK, ServiceError
from .group import ServiceGroup, start_all
from .service import Service
from .valkey import Valkey, find_valkey

SERVICE = "keyfold"  # the name that the Sentinels know the primary by
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 3000

# By default a Sentinel looks at others each 1 to 10 s, and for 30 s at nothing after a busy second.
# Not ping-period: a replica that was not heard for five of them is no candidate.
_QUICK = {
    "info-period": 200,
    "publish-period": 200,
    "min-link-reconnect-period": 200,
    "slave-reconf-timeout": 3000,
    "tilt-trigger": 20_000,
    "tilt-period": 1000,
}


class ValkeyNode(Valkey):
    """A Valkey with a configuration file, in which its role survives a restart."""

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        """Prepare a server; `settings` are added to SETTINGS or replace them."""
        super().__init__(settings={"repl-diskless-sync-delay": "0", **(settings or {})})

    def command(self) -> list[str]:
        """Return the command line: the flags stand in the file, which CONFIG REWRITE changes."""
        file = self.folder / "valkey.conf"
        if not file.exists():
            file.write_text("".join(f"{n} {v or chr(34) * 2}\n" for n, v in self.settings.items()))
        return [find_valkey(), str(file), "--port", str(self.port), "--dir", str(self.folder)]

    @property
    def role(self) -> str:
        """Return "master" or "slave", as the server calls itself."""
        with self.client() as client:
            return str(cast(Any, client.info("replication"))["role"])


class SentinelNode(Service):
    """One Sentinel that watches one primary."""

    name: ClassVar[str] = "sentinel"

    def __init__(self, primary: Callable[[], Valkey], quorum: int) -> None:
        """Prepare a Sentinel; `quorum` of them must see a primary down."""
        super().__init__()
        self._primary, self._quorum = primary, quorum

    def client(self) -> redis.Redis:
        """Return a new connection pool; the caller closes it."""
        return redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=5.0)

    def command(self) -> list[str]:
        """Return the command line; what the Sentinel learns stands in its file."""
        file: Path = self.folder / "sentinel.conf"
        if not file.exists():
            lines = (
                f"bind {LOOPBACK}",
                "protected-mode no",
                f"sentinel monitor {SERVICE} {LOOPBACK} {self._primary().port} {self._quorum}",
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
            )
            file.write_text("\n".join(lines) + "\n")
        port, folder = str(self.port), str(self.folder)
        return [find_valkey(), str(file), "--port", port, "--dir", folder, "--sentinel"]

    def answers(self) -> bool:
        """Tell whether this Sentinel answers, making it quick when it does."""
        with suppress(redis.RedisError), self.client() as client:
            info = cast(Any, client.info("server"))
            pairs = [part for name, value in _QUICK.items() for part in (name, value)]
            client.execute_command("SENTINEL", "DEBUG", *pairs)
            return int(info["process_id"]) == self.pid
        return False

    def watched(self) -> dict[str, Any]:
        """Return what it knows of the primary."""
        with self.client() as client:
            return dict(cast(Any, client.sentinel_master(SERVICE)))


class ValkeyReplicated(ServiceGroup):
    """Two Valkeys and `sentinels` Sentinels; a failover takes 1 to 3 s."""

    def __init__(self, sentinels: int = 3, settings: dict[str, str] | None = None) -> None:
        """Prepare the servers; `settings` are added to those of both Valkeys."""
        super().__init__()
        self._settings = settings
        self._size = sentinels
        self.nodes: list[ValkeyNode] = []
        self.sentinels: list[SentinelNode] = []

    @property
    def members(self) -> Sequence[Service]:
        """Return every program."""
        return [*self.sentinels, *self.nodes]

    @property
    def url(self) -> str:
        """Return the URL of database 0 of whichever Valkey is the primary."""
        return f"redis+sentinel://{','.join(s.address for s in self.sentinels)}/{SERVICE}/0"

    def form(self) -> None:
        """Start the Valkeys, make the second one the first one's replica, start the Sentinels."""
        self.nodes = [ValkeyNode(self._settings), ValkeyNode(self._settings)]
        quorum = self._size // 2 + 1
        self.sentinels = [SentinelNode(lambda: self.nodes[0], quorum) for _ in range(self._size)]
        start_all(self.nodes)
        first, second = self.nodes
        with second.client() as client:
            client.replicaof(LOOPBACK, str(first.port))
            client.config_rewrite()
        start_all(self.sentinels)

    def ready(self) -> None:
        """Return once the replica follows the primary and the Sentinels know all of it."""
        self.catch_up()

    def primary(self) -> ValkeyNode:
        """Return the Valkey that the Sentinels name as primary."""
        for sentinel in self.sentinels:
            with suppress(redis.RedisError), sentinel.client() as client:
                _, port = cast(Any, client.sentinel_get_master_addr_by_name(SERVICE))
                return next(node for node in self.nodes if node.port == int(port))
        raise ServiceError("no Sentinel answers")

    def replica(self) -> ValkeyNode:
        """Return the Valkey that the Sentinels do not name as primary."""
        primary = self.primary()
        return next(node for node in self.nodes if node is not primary)

    def client(self) -> redis.Redis:
        """Return a new connection pool to the present primary; the caller closes it."""
        return self.primary().client()

    def lag_replica(self) -> None:
        """Cut the replica off the stream of writes: what follows is lost by a failover.

        The Sentinels take a replica for too old some 10 s after it was cut off: kill the primary
        (or `failover()`) before, or catch_up().
        """
        with self.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        with self.replica().client() as client:
            self.wait_until("the replica is cut off", lambda: _link(client) == "down")

    def catch_up(self) -> None:
        """Undo lag_replica() and return once the replica has everything."""
        for node in self.nodes:
            if node.running:
                with node.client() as client:
                    client.execute_command("ACL", "SETUSER", "default", "+psync", "+sync")
                    # A Sentinel that demotes a node has it write its settings down, these too.
                    client.config_rewrite()
        self.wait_replicating()

    def failover(self) -> ValkeyNode:
        """Let the Sentinels replace a primary that is alive, and return the new one."""
        old = self.primary()
        self.wait_replicating(link=False)
        asked = self.sentinels[0]

        def begun() -> bool:
            if int(asked.watched()["port"]) != old.port:
                return True
            with suppress(redis.ResponseError), asked.client() as client:
                # Again and again: an attempt may fail. Refused while one is under way.
                client.execute_command("SENTINEL", "FAILOVER", SERVICE)
            return False

        self.wait_until("a Sentinel that names another primary", begun)
        return self.wait_failover(old, begun)

    def wait_failover(self, old: Valkey, again: Callable[[], object] = bool) -> ValkeyNode:
        """Return the new primary once every Sentinel names another one than `old`.

        `again` is called where all name `old` again: on a busy machine Sentinels have taken the new
        primary for dead, and gone back, before all of them knew of it.
        """

        def done() -> bool:
            alive = [sentinel for sentinel in self.sentinels if sentinel.running]
            with suppress(redis.RedisError, KeyError):
                named = {int(sentinel.watched()["port"]) for sentinel in alive}
                if named == {old.port}:
                    again()
                return len(named) == 1 and named != {old.port} and self.primary().role == "master"
            return False

        self.wait_until(f"another primary than {old.address}", done)
        return self.primary()

    def wait_replicating(self, *, link: bool = True) -> None:
        """Return once the replica follows the primary and the living Sentinels know all of it.

        `link=False`: without waiting for the stream of writes.
        """

        def done() -> bool:
            with suppress(redis.RedisError):
                primary, replica = self.primary(), self.replica()
                alive = [sentinel for sentinel in self.sentinels if sentinel.running]
                known = all(self._knows(one, primary, link=link) for one in alive)
                return known and (not link or _in_step(replica, primary))
            return False

        self.wait_until("a replica in step and Sentinels that know it", done)

    def _knows(self, sentinel: SentinelNode, primary: Valkey, *, link: bool) -> bool:
        """Tell whether a Sentinel sees primary, replica and the other Sentinels in their places."""
        seen = sentinel.watched()
        with sentinel.client() as client:
            replicas = cast(Any, client.sentinel_slaves(SERVICE))
        return (
            int(seen["port"]) == primary.port
            and seen["flags"] == "master"
            and int(seen["num-other-sentinels"]) == self._size - 1
            and len(replicas) == 1
            and replicas[0]["flags"] == replicas[0]["role-reported"] == "slave"
            and int(replicas[0]["master-port"]) == primary.port
            and (not link or replicas[0]["master-link-status"] == "ok")
        )


def _link(replica: redis.Redis) -> str:
    return str(cast(Any, replica.info("replication")).get("master_link_status", "none"))


def _in_step(replica: Valkey, primary: Valkey) -> bool:
    with primary.client() as client:
        end = int(cast(Any, client.info("replication"))["master_repl_offset"])
    with replica.client() as client:
        state = cast(Any, client.info("replication"))
    link = state.get("master_link_status")
    return link == "up" and int(state["slave_repl_offset"]) >= end
