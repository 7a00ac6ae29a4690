"""Redis with TLS and ACL users, one server or many; who is not let in is told why in one line."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from secured_serving import PASSWORD, SecuredServing

from keyfold.worker.errors import RedisRefuses
from keyfold.worker.redis import door
from keyfold.worker.redis.client import connect, connect_sync
from keyfold.worker.redis.refusals import check_redis, explain
from keyfold.worker.redis.url import Access
from local.services import Authority, SecuredValkey, ValkeyCluster, ValkeyReplicated
from local.services.tls_front import TlsFront

USER, RULES = "somebody", "~{g:* +info +ping +hset +hget +role +cluster|slots +cluster|shards"
TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an authority's certificate that signed nothing here."""
    return Authority(tmp_path_factory.mktemp("other"), "other-ca").file


def access(valkey: SecuredValkey, url: str = "", **changes: Any) -> Access:
    """Return the right access to a server, but for the changes."""
    valkey.set_user(USER, PASSWORD, RULES)
    right = {"username": USER, "password": PASSWORD, "ca_file": valkey.authority.file}
    return Access(url or valkey.secure_url(), **{**right, **changes})


def use(place: Access) -> None:
    """Write and read a value through the worker's client and through the commands'."""

    async def main() -> None:
        client: Any = connect(place, TIMEOUT_S)
        try:
            await client.hset("{g:t:0}", "field", "value")
            assert await client.hget("{g:t:0}", "field") == b"value"
        finally:
            await client.aclose()

    asyncio.run(main())
    with connect_sync(place, TIMEOUT_S) as client:
        assert client.hget("{g:t:0}", "field") == b"value"
    asyncio.run(check_redis(place, TIMEOUT_S))


def test_a_user_of_the_settings_and_one_of_the_url_get_in_by_tls(
    secured_valkey: SecuredValkey,
) -> None:
    use(access(secured_valkey))
    url = secured_valkey.secure_url()
    words = PASSWORD.replace("%", "%25").replace(" ", "%20").replace("#", "%23")
    use(access(secured_valkey, url.replace("://", f"://{USER}:{words}@"), username="", password=""))


def test_a_client_s_certificate_is_shown_to_a_server_that_wants_one(
    secured_valkey: SecuredValkey,
) -> None:
    mine = secured_valkey.client_certificate
    url = secured_valkey.secure_url("mutual")
    use(access(secured_valkey, url, cert_file=mine.cert, key_file=mine.key))


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "wrong password": ("secure", {"password": "hunter3"}, "redis.username, redis.password: Redis "),
    "unknown user": ("secure", {"username": "nobody"}, "refuses 'nobody'"),
    "other authority": ("secure", {"ca_file": "other"}, "redis.ca_file: 127.0.0.1:"),
    "system's authorities": ("secure", {"ca_file": None}, "that the system's authorities did not"),
    "expired": ("expired", {}, "is not valid now (certificate has expired)"),
    "other host": ("elsewhere", {}, "is for another host"),
    "no certificate": ("mutual", {}, "redis.cert_file, redis.key_file: 127.0.0.1:"),
    "no TLS on a TLS port": ("redis", {"ca_file": None}, "hangs up on a client without TLS"),
    "TLS on a port without": ("plain", {}, "speaks no TLS: expected redis://"),
}


@pytest.mark.parametrize("name", CASES)
def test_who_is_not_let_in_is_told_why_in_one_line(
    name: str, secured_valkey: SecuredValkey, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "KNOCK_S", 0.5)
    front, changes, said = CASES[name]
    if changes.get("ca_file") == "other":
        changes = {"ca_file": other}
    urls = {
        "redis": secured_valkey.secure_url(scheme="redis"),
        "plain": secured_valkey.url.replace("redis:", "rediss:"),
    }
    place = access(secured_valkey, urls.get(front) or secured_valkey.secure_url(front), **changes)
    with warnings.catch_warnings():
        # redis-py leaves a socket to the garbage collector when TLS' handshake fails.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(RedisRefuses) as caught:
            asyncio.run(check_redis(place, 1.0))
        gc.collect()
    # A command that looks once is told the same: before its client is made, or by it.
    with pytest.raises((RedisRefuses, RedisError)) as asked, connect_sync(place, 1.0) as client:
        client.ping()
    told = asked.value
    looked = explain(told, place) if isinstance(told, RedisError) else str(told)
    for line in (str(caught.value), looked):
        assert said in line
        assert "\n" not in line
        assert PASSWORD not in line
        assert "hunter3" not in line


@pytest.mark.parametrize("scheme", ["rediss", "redis"])
def test_a_url_with_tls_where_there_is_none_or_the_other_way_round_is_told_soon(
    secured_valkey: SecuredValkey, scheme: str
) -> None:
    urls = {
        "rediss": secured_valkey.url.replace("redis:", "rediss:"),
        "redis": secured_valkey.secure_url(scheme="redis"),
    }
    said = {"rediss": "speaks no TLS", "redis": "hangs up on a client without TLS"}
    place = Access(urls[scheme])
    limit_s = 60.0  # as keyfold-verify has it: the client itself would wait for as long
    begun = time.monotonic()
    with pytest.raises(RedisRefuses, match=said[scheme]):
        connect_sync(place, limit_s)
    with pytest.raises(RedisRefuses, match=said[scheme]):
        asyncio.run(check_redis(place, limit_s))
    assert time.monotonic() - begun < 20


def test_a_redis_that_is_away_is_waited_for_later() -> None:
    asyncio.run(check_redis(Access("rediss://127.0.0.1:1"), 1.0))


@pytest.fixture
def cluster(secured_valkey: SecuredValkey) -> Iterator[str]:
    """Run a cluster of one node behind TLS; return its URL."""
    with ValkeyCluster(1) as servers:
        (node,) = servers.nodes
        with TlsFront(node.address, secured_valkey.authority.issue("cluster")) as front:
            node.says("CONFIG", "SET", "cluster-announce-port", front.port)
            node.says("ACL", "SETUSER", USER, "on", f">{PASSWORD}", *RULES.split())
            yield f"rediss+cluster://{front.address}"


def test_a_cluster_is_reached_by_tls_and_an_acl_user(
    secured_valkey: SecuredValkey, cluster: str
) -> None:
    place = access(secured_valkey, cluster)

    async def main() -> None:
        client: Any = connect(place, TIMEOUT_S)
        try:
            await client.hset("{g:t:0}", "field", "value")
            assert await client.hget("{g:t:0}", "field") == b"value"
        finally:
            await client.aclose()

    asyncio.run(main())
    asyncio.run(check_redis(place, TIMEOUT_S))


def test_sentinels_and_servers_have_users_of_their_own() -> None:
    with ValkeyReplicated(1) as servers:
        for node in servers.nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", *RULES.split())
        with servers.sentinels[0].client() as client:
            client.execute_command(
                "ACL", "SETUSER", "watcher", "on", ">their own", "+sentinel|master",
                "+sentinel|masters",
            )  # fmt: skip
        place = Access(
            servers.url, username=USER, password=PASSWORD,
            sentinel_username="watcher", sentinel_password="their own",
        )  # fmt: skip
        use(place)
        wrong = Access(
            servers.url, username=USER, password=PASSWORD,
            sentinel_username="watcher", sentinel_password="hunter3",
        )  # fmt: skip
        with pytest.raises(
            RedisRefuses, match=r"redis\.sentinel_username, redis\.sentinel_p"
        ) as caught:
            asyncio.run(check_redis(wrong, 1.0))
        assert "hunter3" not in str(caught.value)


def test_a_worker_whose_redis_is_behind_tls_and_is_not_told_so_says_it(
    secured: SecuredServing,
) -> None:
    secured.allow("keyfold-worker")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    url = secured.valkey.secure_url(scheme="redis")
    done = secured.run("worker", secured.settings(redis__url=url, redis__ca_file=""))
    assert done.status == 2
    (line,) = done.err.strip().splitlines()
    assert line.startswith("keyfold-worker: redis.url: 127.0.0.1:")
    assert line.endswith("with the PEM of who signed its certificate")
