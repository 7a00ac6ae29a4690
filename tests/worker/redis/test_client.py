"""The three forms of redis.url on real servers: failovers, restarts and moved slots."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import pytest
import redis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from keyfold.worker.redis.client import (
    Script,
    connect,
    connect_sync,
    primaries,
    problem_with_url,
    without_password,
)
from keyfold.worker.redis.url import FORMS, parse_url
from local.services import Proxy, Valkey, ValkeyCluster, ValkeyReplicated
from local.services.valkey_replicated import SentinelNode

TIMEOUT_S = 1.0
NAMES = [f"{{group:topic:{number}}}" for number in range(24)]  # all over the slots
ADD = "return redis.call('HINCRBY', KEYS[1], '#W', ARGV[1])"

T = TypeVar("T")

integration = pytest.mark.integration


@pytest.fixture(scope="module")
def replicated() -> Iterator[ValkeyReplicated]:
    with ValkeyReplicated() as servers:
        yield servers


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as servers:
        yield servers


async def with_client(url: str, use: Callable[[Redis], Awaitable[T]]) -> T:
    client = connect(url, TIMEOUT_S)
    try:
        return await use(client)
    finally:
        await client.aclose()


def on(url: str, use: Callable[[Redis], Awaitable[T]]) -> T:
    """Run one test's commands on a client of `url`."""
    return asyncio.run(asyncio.wait_for(with_client(url, use), 60))


async def until_done(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a command as the worker does: only errors that it knows, and not for ever."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except (RedisError, OSError):
                await asyncio.sleep(0.01)


async def every_command(client: Redis, name: str) -> None:
    """Use what worker/store.py uses."""
    plain = cast(Any, client)
    await plain.delete(name)
    assert await plain.hsetnx(name, "#N", "4") == 1
    assert await plain.hset(name, mapping={"#W": 7, ":key": b"\x00\xff"}) == 2
    assert await plain.hget(name, "#W") == b"7"
    assert await plain.hmget(name, ["#W", b":key", "none"]) == [b"7", b"\x00\xff", None]
    assert await plain.hlen(name) == 3
    script = Script(client, "return {KEYS[1], ARGV[1], redis.call('HGET', KEYS[1], '#W')}")
    for _ in range(2):  # in full, then by its digest
        assert await script(keys=[name], args=[b"\xfe"]) == [name.encode(), b"\xfe", b"7"]
    assert [field async for field, _ in plain.hscan_iter(name)] == [b"#N", b"#W", b":key"]
    assert await plain.delete(name) == 1
    for server in await primaries(client):
        assert (await cast(Any, server).info("memory"))["maxmemory_policy"] == "noeviction"
    assert "maxmemory_policy" in await plain.info("memory")


@integration
def test_one_server_answers_all_commands_of_the_store(valkey: Valkey) -> None:
    on(valkey.url, lambda client: every_command(client, "{one:server}"))


@integration
def test_a_primary_behind_sentinels_answers_all_commands(replicated: ValkeyReplicated) -> None:
    on(replicated.url, lambda client: every_command(client, NAMES[0]))


@integration
def test_a_cluster_answers_all_commands_on_every_hash_tag(cluster: ValkeyCluster) -> None:
    async def use(client: Redis) -> None:
        await asyncio.gather(*(every_command(client, name) for name in NAMES))
        assert len(await primaries(client)) == 3

    on(cluster.url, use)
    assert {cluster.node_of(name) for name in NAMES} == set(cluster.nodes), "tags on all nodes"


@integration
def test_a_script_that_a_server_forgot_is_sent_again(valkey: Valkey) -> None:
    async def use(client: Redis) -> None:
        script = Script(client, ADD)
        assert await script(keys=["{forgotten}"], args=[1]) == 1
        await cast(Any, client).script_flush()
        assert await script(keys=["{forgotten}"], args=[1]) == 2

    on(valkey.url, use)


@integration
@pytest.mark.parametrize("kind", ["server", "sentinel", "cluster"])
def test_more_commands_than_connections_wait_for_one(
    kind: str, valkey: Valkey, replicated: ValkeyReplicated, cluster: ValkeyCluster
) -> None:
    url = {"server": valkey.url, "sentinel": replicated.url, "cluster": cluster.url}[kind]

    async def use(client: Redis) -> None:
        script = Script(client, ADD)
        await asyncio.gather(*(script(keys=["{many}"], args=[1]) for _ in range(300)))
        assert await cast(Any, client).hget("{many}", "#W") == b"300"
        await cast(Any, client).delete("{many}")

    on(url, use)


async def keep_adding(client: Redis, name: str, stop: asyncio.Event) -> None:
    script = Script(client, ADD)
    while not stop.is_set():
        await until_done(lambda: script(keys=[name], args=[1]))
        await until_done(lambda: cast(Any, client).hmget(name, ["#W"]))


async def while_adding(client: Redis, fault: Callable[[], T]) -> T:
    """Let a fault happen under load; afterwards every task must have got through again."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(keep_adding(client, name, stop)) for name in NAMES]
    try:
        result = await asyncio.to_thread(fault)
        for name in NAMES:
            await until_done(partial(Script(client, ADD), [name], [1]))
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    return result


@integration
def test_commands_go_on_at_the_new_primary_and_when_the_old_one_is_a_replica(
    replicated: ValkeyReplicated,
) -> None:
    def fail_over() -> Valkey:
        old = replicated.primary()
        old.kill()
        new = replicated.wait_failover(old)
        old.start()
        replicated.wait_replicating()
        return new

    async def use(client: Redis) -> None:
        new = await while_adding(client, fail_over)
        await cast(Any, client).hset(NAMES[0], "at", "new")
        assert new.client().hget(NAMES[0], "at") == b"new"

    on(replicated.url, use)


@integration
def test_a_frozen_primary_that_comes_back_gets_no_more_commands(
    replicated: ValkeyReplicated,
) -> None:
    def freeze() -> None:
        old = replicated.primary()
        old.pause()
        try:
            replicated.wait_failover(old)
        finally:
            old.resume()
        replicated.wait_replicating()

    async def use(client: Redis) -> None:
        await while_adding(client, freeze)
        await cast(Any, client).hset(NAMES[0], "at", "thawed")
        assert replicated.client().hget(NAMES[0], "at") == b"thawed"

    on(replicated.url, use)


@integration
def test_a_planned_failover_stops_nothing_for_long(replicated: ValkeyReplicated) -> None:
    on(replicated.url, lambda client: while_adding(client, replicated.failover))
    replicated.wait_replicating()


@integration
def test_a_demoted_server_is_never_read_from(replicated: ValkeyReplicated) -> None:
    """Sentinel closes its connections, and redis-py's pool reopens them without a word."""

    async def use(client: Redis) -> None:
        plain = cast(Any, client)
        await plain.hset(NAMES[1], "at", "old")
        await asyncio.to_thread(replicated.failover)
        await asyncio.to_thread(replicated.wait_replicating)
        await asyncio.to_thread(replicated.lag_replica)
        try:
            with replicated.client() as primary:
                primary.hset(NAMES[1], "at", "new")
            with replicated.replica().client() as replica:
                assert replica.hget(NAMES[1], "at") == b"old"
            assert await until_done(lambda: plain.hget(NAMES[1], "at")) == b"new"
        finally:
            await asyncio.to_thread(replicated.catch_up)

    on(replicated.url, use)


@integration
def test_a_primary_that_turns_replica_under_an_open_connection_is_left(
    replicated: ValkeyReplicated,
) -> None:
    async def use(client: Redis) -> None:
        plain = cast(Any, client)
        await plain.hset(NAMES[1], "at", 1)
        with replicated.primary().client() as primary:
            primary.replicaof("127.0.0.1", str(replicated.replica().port))
            try:
                with pytest.raises(redis.ConnectionError, match="became a replica"):
                    await plain.hset(NAMES[1], "at", 2)
                with pytest.raises(redis.ConnectionError, match="is a replica now"):
                    await plain.hget(NAMES[1], "at")
            finally:
                primary.replicaof("NO", "ONE")
        await until_done(lambda: plain.hset(NAMES[1], "at", 3))

    on(replicated.url, use)
    replicated.wait_replicating()


@integration
def test_of_sentinels_that_disagree_the_one_that_saw_the_last_failover_is_right(
    replicated: ValkeyReplicated, valkey: Valkey
) -> None:
    replicated.failover()
    replicated.wait_replicating()
    behind = SentinelNode(lambda: valkey, 1)
    with behind:
        for hosts in ([behind, replicated.sentinels[0]], [replicated.sentinels[0], behind]):
            url = f"redis+sentinel://{','.join(host.address for host in hosts)}/keyfold"
            on(url, lambda client: cast(Any, client).hset(NAMES[1], "at", "right"))
            with replicated.client() as primary:
                assert primary.hget(NAMES[1], "at") == b"right"
                primary.delete(NAMES[1])


@integration
def test_the_next_sentinel_is_asked_where_one_is_gone(replicated: ValkeyReplicated) -> None:
    replicated.sentinels[0].kill()
    try:
        on(replicated.url, lambda client: every_command(client, NAMES[2]))
        with connect_sync(replicated.url, TIMEOUT_S) as client:
            assert client.ping()
    finally:
        replicated.sentinels[0].start()
        replicated.wait_replicating()


@integration
def test_a_service_that_no_sentinel_knows_is_named(replicated: ValkeyReplicated) -> None:
    async def use(client: Redis) -> None:
        with pytest.raises(redis.ConnectionError, match=r"no primary of 'other'.*No such master"):
            await cast(Any, client).ping()

    on(replicated.url.replace("/keyfold/", "/other/"), use)


@integration
def test_commands_go_on_after_a_node_of_the_cluster_was_killed(cluster: ValkeyCluster) -> None:
    def kill_and_restart() -> None:
        node = cluster.nodes.index(cluster.node_of(NAMES[0]))
        cluster.kill(node)
        cluster.restart(node)

    on(cluster.url, lambda client: while_adding(client, kill_and_restart))


@integration
def test_commands_go_on_after_the_whole_cluster_was_killed(cluster: ValkeyCluster) -> None:
    def kill_and_restart() -> None:
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        cluster.wait_ok()

    on(cluster.url, lambda client: while_adding(client, kill_and_restart))


@integration
def test_commands_go_on_at_a_replica_that_took_a_dead_nodes_place() -> None:
    # The other nodes serve on and say nothing: only the dead one's silence tells.
    partly = {"cluster-require-full-coverage": "no"}
    with ValkeyCluster(replicas=1, settings=partly) as cluster:

        def kill() -> None:
            node = cluster.node_of(NAMES[0])
            node.kill()
            cluster.wait_until(
                "a replica in its place", lambda: cluster.node_of(NAMES[0]) is not node
            )

        on(cluster.url, lambda client: while_adding(client, kill))


@integration
def test_a_slot_that_moves_is_followed(cluster: ValkeyCluster) -> None:
    name = "{moves}"
    source = cluster.node_of(name)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.says("CLUSTER KEYSLOT", name)
    source_id, target_id = source.says("CLUSTER MYID"), target.says("CLUSTER MYID")

    async def use(client: Redis) -> None:
        script = Script(client, ADD)
        assert await script(keys=[name], args=[1]) == 1
        target.says("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        source.says("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
        source.says("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        assert await script(keys=[name], args=[1]) == 2, "asked at the target"
        for node in (target, source):
            node.says("CLUSTER SETSLOT", slot, "NODE", target_id)
        assert await script(keys=[name], args=[1]) == 3, "moved to the target"

    on(cluster.url, use)
    assert target.says("HGET", name, "#W") == b"3"


@integration
def test_a_reply_that_does_not_come_ends_the_wait(valkey: Valkey) -> None:
    with Proxy(valkey.address) as proxy:

        async def use(client: Redis) -> None:
            plain = cast(Any, client)
            await plain.hset("{lost}", "a", 1)
            proxy.stall("replies")
            with pytest.raises(redis.TimeoutError):
                await plain.hincrby("{lost}", "a", 1)
            proxy.drop()
            proxy.heal()
            assert await plain.hget("{lost}", "a") == b"2", "carried out once, not repeated"
            await plain.delete("{lost}")

        on(f"redis://{proxy.address}/0", use)


@integration
@pytest.mark.parametrize("kind", ["server", "sentinel", "cluster"])
def test_the_operator_tools_read_what_the_worker_wrote(
    kind: str, valkey: Valkey, replicated: ValkeyReplicated, cluster: ValkeyCluster
) -> None:
    url = {"server": valkey.url, "sentinel": replicated.url, "cluster": cluster.url}[kind]
    on(url, lambda client: cast(Any, client).hset("{read}", mapping={"#W": 1, ":k": b"\xff"}))
    with connect_sync(url, TIMEOUT_S) as client:
        assert client.hgetall("{read}") == {b"#W": b"1", b":k": b"\xff"}
        assert dict(client.hscan_iter("{read}")) == {b"#W": b"1", b":k": b"\xff"}
        assert client.exists("{read}", *NAMES) >= 1
        client.delete("{read}")


@integration
def test_a_login_is_for_the_servers_and_for_sentinels_that_want_one() -> None:
    with ValkeyReplicated(sentinels=1) as servers:
        url = servers.url.replace("://", "://:hunter2@")
        for service in (servers.primary(), servers.sentinels[0]):  # the Sentinel only afterwards
            with service.client() as admin:
                admin.execute_command("ACL", "SETUSER", "default", "resetpass", ">hunter2")
            on(url, lambda client: cast(Any, client).hset("{login}", "a", 1))
            with connect_sync(url, TIMEOUT_S) as tool:
                assert tool.hget("{login}", "a") == b"1"

            async def use(client: Redis) -> None:
                with pytest.raises(redis.ConnectionError, match="Authentication required"):
                    await cast(Any, client).hget("{login}", "a")

            on(servers.url, use)


@integration
def test_a_server_that_is_no_cluster_says_so(valkey: Valkey) -> None:
    url = f"redis+cluster://{valkey.address}"

    async def use(client: Redis) -> None:
        with pytest.raises(redis.ConnectionError, match="cluster support disabled"):
            await cast(Any, client).hget("{any}", "a")

    on(url, use)
    with pytest.raises(redis.ConnectionError):
        connect_sync(url, TIMEOUT_S)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://host",
        "rediss://user:hunter2@host:6379/3",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock",
        "redis+sentinel://a:26379,b:26379,c/keyfold",
        "redis+sentinel://user:hunter2@a:26379,[::1]:26380/keyfold/2",
        "rediss+sentinel://a/keyfold",
        "redis+cluster://a:7000,b:7001",
        "redis+cluster://user:hunter2@a",
    ],
)
def test_the_forms_of_an_url(url: str) -> None:
    assert problem_with_url(url) is None
    assert "hunter2" not in without_password(url)
    assert "user" not in without_password(url)


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("localhost:6379", "server"),
        ("http://host", "server"),
        ("redis://user:hunter2@host:port/0", "redis"),
        ("redis://user:hun/ter2hunter2@host:6379/0", "redis"),
        ("redis://hunter2:99999999@host/x", "redis"),
        ("redis://host:0", "redis"),
        ("redis://[hunter2", "redis"),
        ("redis://", "redis"),
        ("unix://", "unix"),
        ("redis+sentinel://hunter2:x@a:1,b:2", "sentinel"),
        ("redis+sentinel://a:1,,b:2/keyfold", "sentinel"),
        ("redis+sentinel://a:one/keyfold", "sentinel"),
        ("redis+sentinel://a/keyfold/hunter2", "sentinel"),
        ("redis+cluster://a:7000/3", "cluster"),
        ("redis+cluster://", "cluster"),
        ("redis+cluster://user:hun/ter2hunter2@a:1", "cluster"),
    ],
)
def test_a_wrong_url_is_told_without_showing_it(url: str, form: str) -> None:
    problem = problem_with_url(url)
    assert problem is not None
    assert "hunter2" not in problem
    assert (
        ("redis+cluster" in problem and "unix:" in problem)
        if form == "server"
        else (problem == f"expected {FORMS[form]}")
    )
    with pytest.raises(ValueError, match="expected") as caught:
        connect(url, TIMEOUT_S)
    assert "hunter2" not in str(caught.value)


def test_servers_are_reached_with_the_login_database_and_options_of_the_url() -> None:
    place = parse_url("rediss+sentinel://user:hunter2@a/keyfold/2?ssl_cert_reqs=none")
    assert place.of("::1", 6380) == "rediss://user:hunter2@[::1]:6380/2?ssl_cert_reqs=none"
    assert place.sentinel("a", 26379, "") == "rediss://a:26379?ssl_cert_reqs=none"
    assert place.hosts == (("a", 26379),)
