"""keyfold-worker check's questions to Redis: is it there, may we, will it keep what we save?

Owns what is asked of Redis and the words of the answers. It writes nothing: rights are asked of
Redis itself inside a script that only looks. Called by cli.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

from redis import Redis as Client
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from keyfold.export.bundle import Manifest
from keyfold.worker.beginning import HANDOVER
from keyfold.worker.check.report import Finding, fail, ok, warn, within
from keyfold.worker.check.start import where_it_begins
from keyfold.worker.config import Config
from keyfold.worker.errors import Crash
from keyfold.worker.handover.store import handover_name
from keyfold.worker.kafka.samples import open_log
from keyfold.worker.redis.client import connect_sync, without_password
from keyfold.worker.redis.refusals import check_redis
from keyfold.worker.state.store_admin import Admin
from keyfold.worker.state.survey import Survey, survey
from keyfold.worker.store import partition_name

# Of one key beside its tensors: header and checksum, field name, the hash's own bookkeeping.
OVERHEAD_BYTES = 150
FEW_KEYS = 10_000  # room for fewer than these is worth a warning
SHOWN = 4  # problems of partitions shown one by one

# What every worker's scripts and calls use on a partition's hash and its like, and on the record of
# who emits a partition's outputs; deploy/ACLS.md. redis.acl_check_cmd came with Redis 7.
HASH = (
    ("HMGET", "#W"), ("HSET", "#W", "0"), ("HSETNX", "#N", "1"), ("HINCRBY", "#E", "1"), ("HLEN",),
    ("UNLINK",),
)  # fmt: skip
Commands = tuple[tuple[str, ...], ...]
_RIGHTS = """
local refused = {}
for _, one in ipairs(cjson.decode(ARGV[1])) do
  local name = table.remove(one, 1)
  if not redis.acl_check_cmd(name, KEYS[1], unpack(one)) then table.insert(refused, name) end
end
return refused
"""
_OLD = "if redis.acl_check_cmd then return 1 else return 0 end"


class RedisSide:
    """The questions to one Redis."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client: Any = None

    def reach(self) -> Iterator[Finding]:
        """Ask whether it answers, and whether it is set up to keep states."""
        redis = self._config.redis
        asyncio.run(check_redis(redis.access, redis.timeout_s))  # who has words for a refusal
        client, where = self._connect(), without_password(redis.url)
        told = [server.info() for server in self._servers(client)]
        info = told[0]
        name = info.get("server_name") or ("valkey" if "valkey_version" in info else "redis")
        version = info.get("valkey_version") or info.get("redis_version", "?")
        yield ok(f"{where} answers: {name} {version}")
        yield from dict.fromkeys(one for info in told for one in _policy(info))

    def memory(self, manifest: Manifest) -> Iterator[Finding]:
        """Ask how many keys' states there is room for."""
        told = [server.info("memory") for server in self._servers(self._connect())]
        used = sum(int(info.get("used_memory", 0)) for info in told)
        limited = all(int(info.get("maxmemory", 0)) for info in told)
        whose = "maxmemory" if limited else "the machine's memory (no maxmemory)"
        which = "maxmemory" if limited else "total_system_memory"
        limit = sum(int(info.get(which, 0)) for info in told)
        if not limit:
            yield warn("Redis does not tell its memory: see that the states will fit")
            return
        per_key = manifest.state_bytes + OVERHEAD_BYTES
        keys = max(limit - used, 0) // per_key
        text = (
            f"room for about {keys:,} keys of {per_key:,} bytes: {used / 2**20:,.0f} of "
            f"{limit / 2**20:,.0f} MiB of {whose} are used"
        )
        yield ok(text) if keys >= FEW_KEYS else warn(f"{text}; give Redis more memory")

    def rights(self, manifest: Manifest) -> Iterator[Finding]:
        """Ask which of the commands a worker needs its user may not use."""
        kafka, client = self._config.kafka, self._connect()
        advice = f"ACL SETUSER {self._user} {grant(self._config, manifest)}"
        wanted = (
            (partition_name(kafka.group, kafka.input, 0), commands(self._config, manifest)),
            (handover_name(kafka.input, kafka.output, 0), on_record(self._config)),
        )
        refused = []
        try:
            if not client.eval(_OLD, 1, wanted[0][0]):
                yield warn(f"Redis before version 7 does not tell our rights; needed: {advice}")
                return
            for key, listed in wanted:
                names = client.eval(_RIGHTS, 1, key, json.dumps(listed))
                refused += [f"{name.decode()} {key}" for name in names]
            if not self._may_call_scripts(client, wanted[0][0]):
                refused.append("EVALSHA")
        except NoPermissionError as error:
            raise Crash(f"{error}; allow it: {advice}") from error
        except ResponseError as error:
            raise Crash(f"Redis cannot be asked: {error}") from error
        if refused:
            yield fail(f"Redis' ACL forbids this user {', '.join(refused)}; allow it: {advice}")
            return
        yield ok(f"this user may do all that a worker does, on {wanted[0][0]} and its like")

    @staticmethod
    def _may_call_scripts(client: Any, key: str) -> bool:
        try:
            client.evalsha("0" * 40, 1, key)  # of no script: only the right is asked
        except NoScriptError:
            return True
        except NoPermissionError:
            return False
        return True

    def states(self, file: str) -> Iterator[Finding]:
        """Look at the states that the group has, and at what would make a worker halt."""
        group = self._config.kafka.group
        admin = Admin(self._connect(), group)
        found = within(lambda: survey(self._config, admin), self._config.kafka.request_timeout_s)
        if found is None:
            yield warn(f"not looked at in time, with so many partitions: keyfold-state list {file}")
            return
        problems = [(p.number, why) for p in found.places for why in found.problems(p)]
        if not problems:
            wrong = list(where_it_begins(self._config, found.places))
            yield from wrong or [ok(_held(found, self._config))]
            if not wrong and all(place.held is None for place in found.places):
                yield from self._emitted_before()
            return
        for number, why in problems[:SHOWN]:
            yield fail(f"partition {number} would HALT: {why}")
        more = f"{len(problems) - SHOWN} more like these; " if len(problems) > SHOWN else ""
        yield fail(
            f"{more}use another kafka.group for this bundle, or see keyfold-state list {file} and "
            "the README's table of HALTs"
        )

    def _emitted_before(self) -> Iterator[Finding]:
        """Warn of predictions in the output topic that a new group would emit once more."""
        kafka, worker = self._config.kafka, self._config.worker
        if worker.emit_from or worker.start == "latest":
            return
        try:
            with open_log(self._config) as log:
                extents = [log.extent(kafka.output, n) for n in range(log.partitions(kafka.output))]
        except Crash:
            return  # a worker may do without the right to look
        if any(extent.end > extent.start for extent in extents):
            yield warn(
                f"{kafka.output} holds predictions, yet group {kafka.group} is new: it would "
                "predict the same events again; right group? or set worker.emit_from"
            )

    def _connect(self) -> Any:
        if self._client is None:
            redis = self._config.redis
            self._client = connect_sync(redis.access, redis.timeout_s)
        return self._client

    @property
    def _user(self) -> str:
        return self._config.redis.access.user or "NAME"

    @staticmethod
    def _servers(client: Any) -> list[Client]:
        """Return a client of each server that holds states: on a cluster every primary."""
        if isinstance(client, RedisCluster):
            cluster: Any = client
            return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]
        return [cast(Client, client)]


def commands(config: Config, manifest: Manifest) -> Commands:
    """Return what a worker of these settings does with a partition's hash and its like."""
    worker, events = config.worker, manifest.events
    relative = any(text.startswith(("-", "now")) for text in (worker.start, worker.emit_from))
    more = (
        (events.ends, ("HDEL", "#W")),
        (manifest.collects_after_ms is not None, ("HSCAN", "0")),
        (relative, ("HGET", "#A")),
    )
    return (*HASH, *(one for wanted, one in more if wanted))


def on_record(config: Config) -> Commands:
    """Return what a worker of these settings does with the record of who has the outputs."""
    return (("GET",), ("SET", "x")) if config.worker.emit_from == HANDOVER else (("GET",),)


def grant(config: Config, manifest: Manifest) -> str:
    """Return the rules of an ACL user that may do what a worker does, as in deploy/ACLS.md."""
    kafka, wanted = config.kafka, (*commands(config, manifest), *on_record(config))
    names = " ".join(f"+{name.lower()}" for name, *_ in wanted)
    keys = f"~{{{kafka.group}:* ~keyfold-handover:{{{kafka.input}:{kafka.output}:*"
    return f"{keys} +info +eval +evalsha {names}"


def _policy(info: dict[str, Any]) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy")
    if policy is None:
        yield warn("Redis does not tell its maxmemory-policy: it must be noeviction")
    elif policy != "noeviction":
        yield fail(
            f"maxmemory-policy {policy} throws states away: CONFIG SET maxmemory-policy noeviction"
        )
    else:
        yield ok("maxmemory-policy noeviction")
    if not int(info.get("aof_enabled", 0)):
        yield warn(
            "appendonly is off: a restart of Redis loses what was saved since its last snapshot, "
            "and the worker replays it; better: CONFIG SET appendonly yes"
        )
    else:
        yield ok("appendonly yes")


def _held(found: Survey, config: Config) -> str:
    group, start = config.kafka.group, config.worker.start
    held = [place for place in found.places if place.held is not None]
    if not held:
        return f"group {group} has none yet: it begins at worker.start, {start}"
    keys = sum(place.held.states for place in held if place.held is not None)
    return f"group {group} has {keys:,} keys in {len(held)} partitions and goes on from there"
