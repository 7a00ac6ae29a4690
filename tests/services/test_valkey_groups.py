"""Valkey with Sentinels and as a cluster: failovers that lose writes, nodes that come back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from local.services import ServiceError, Valkey, ValkeyCluster, ValkeyReplicated
from local.services.group import ServiceGroup, start_all

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def replicated() -> Iterator[ValkeyReplicated]:
    with ValkeyReplicated(sentinels=1) as servers:
        yield servers


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as nodes:
        yield nodes


def test_a_failover_loses_what_a_lagging_replica_missed(replicated: ValkeyReplicated) -> None:
    with replicated.client() as client:
        client.set("kept", 1)
        replicated.wait_replicating()
        replicated.lag_replica()
        client.set("lost", 1)
    old = replicated.primary()

    old.kill()
    new = replicated.wait_failover(old)

    with new.client() as client:
        assert client.mget("kept", "lost") == [b"1", None]
    old.start()
    replicated.wait_replicating()
    with old.client() as client:
        assert client.mget("kept", "lost") == [b"1", None], "the old one follows the new one"
    assert (new.role, old.role) == ("master", "slave")


def test_a_replica_that_caught_up_loses_nothing(replicated: ValkeyReplicated) -> None:
    replicated.lag_replica()
    with replicated.client() as client:
        client.set("late", 1)
    replicated.catch_up()

    replicated.failover()

    with replicated.client() as client:
        assert client.get("late") == b"1"
    replicated.wait_replicating()


def test_a_server_remembers_its_role_over_a_restart(replicated: ValkeyReplicated) -> None:
    replica = replicated.replica()
    replica.kill()
    replica.start()
    assert replica.role == "slave"
    replicated.wait_replicating()


def test_each_primary_of_a_cluster_serves_a_third_of_the_slots(cluster: ValkeyCluster) -> None:
    with cluster.client() as client:
        for number in range(60):
            client.set(f"{{{number}}}", number)
    assert all(int(node.says("DBSIZE")) >= 10 for node in cluster.nodes)


def test_a_node_of_a_cluster_comes_back_with_its_slots_and_data(cluster: ValkeyCluster) -> None:
    with cluster.client() as client:
        client.set("{a}", "kept")
    node = cluster.node_of("{a}")
    cluster.kill(cluster.nodes.index(node))
    assert not node.running
    cluster.restart(cluster.nodes.index(node))
    assert cluster.node_of("{a}") is node
    with cluster.client() as client:
        assert client.get("{a}") == b"kept"


def test_a_cluster_without_full_coverage_serves_the_other_slots() -> None:
    with ValkeyCluster(settings={"cluster-require-full-coverage": "no"}) as cluster:
        dead = cluster.node_of("{a}")
        other = next(tag for tag in "bcdefgh" if cluster.node_of(f"{{{tag}}}") is not dead)
        dead.kill()
        cluster.wait_until(
            "the death noticed",
            lambda: all(
                n.cluster_info()["cluster_slots_fail"] != "0" for n in cluster.nodes if n.running
            ),
        )
        assert cluster.node_of(f"{{{other}}}").says("SET", f"{{{other}}}", 1)


def test_a_group_that_was_killed_comes_back_whole(replicated: ValkeyReplicated) -> None:
    with replicated.client() as client:
        client.set("all", "killed")
    replicated.wait_replicating()
    for member in replicated.members:
        member.kill()
    assert not replicated.running
    replicated.start()
    with replicated.client() as client:
        assert client.get("all") == b"killed"


def test_closing_a_group_leaves_nothing() -> None:
    with ValkeyReplicated() as servers:
        pids = [member.pid for member in servers.members]
        folders = [member.folder for member in servers.members]
        assert len(pids) == 5
        servers.replica().pause()  # a frozen one too
    assert not any(folder.exists() for folder in folders)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Half(ServiceGroup):
    """A group whose second member cannot start."""

    def __init__(self) -> None:
        super().__init__()
        self.both = [Valkey(), Valkey(settings={"maxmemory-policy": "nonsense"})]

    @property
    def members(self) -> list[Valkey]:
        return self.both

    def form(self) -> None:
        start_all(self.both)

    def ready(self) -> None:
        raise AssertionError("not started")


def test_a_group_of_which_one_cannot_start_says_why_and_ends_the_others() -> None:
    half = Half()
    with pytest.raises(ServiceError, match=r"(?s)exit code 1 .*nonsense"):
        half.__enter__()
    assert not half.both[0].running
