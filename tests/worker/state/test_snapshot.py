"""keyfold-state snapshot and restore: copies of one instant, and what may be put back where.

On a real Kafka and Valkey, with states planted by hand (tests/support/state_case.py).
"""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from state_case import StateCase

from keyfold.worker.errors import Crash
from keyfold.worker.state import snapshot_file as snapshots
from keyfold.worker.state.snapshot import repeat
from keyfold.worker.state.snapshot_file import entries, verify
from keyfold.worker.state.store_admin import SCAN, Admin, Emission
from local.services import Valkey, ValkeyCluster


def copied(case: StateCase, folder: Path, partition: int = 0) -> Path:
    """Snapshot one partition and return its newest file."""
    assert case.run("snapshot", str(folder), "--partition", str(partition)) == 0
    return max(folder.glob(f"*-p{partition}-w*.keyfold"))


# -- snapshot --------------------------------------------------------------------------------------


def test_a_snapshot_holds_all_states_and_all_meta_fields_of_one_instant(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(0, watermark=10, keys=3 * SCAN)
    case.plant(1, watermark=7, keys=2)
    assert case.run("snapshot", str(tmp_path / "new")) == 0
    first, second = sorted((tmp_path / "new").iterdir(), key=lambda path: path.name[-12:])[::-1]
    if "-p0-" in second.name:
        first, second = second, first
    assert re.fullmatch(rf"\d{{8}}T\d{{9}}Z-{case.topic}-p0-w10\.keyfold", first.name)
    assert re.fullmatch(rf"\d{{8}}T\d{{9}}Z-{case.topic}-p1-w7\.keyfold", second.name)
    header = verify(first)
    assert (header.group, header.topic, header.partition) == (case.group, case.topic, 0)
    assert (header.bundle, header.layout, header.partitions) == (case.bundle.id, "2", 2)
    assert header.meta == case.meta()
    assert dict(entries(first)) == case.stored()
    out = capsys.readouterr().out
    size = first.stat().st_size
    expected = f"partition 0: {3 * SCAN} key states up to offset 10 -> {first} ({size} bytes)"
    assert expected in out
    assert case.names() == {case.name(0), case.name(1)}, "the copy in Redis is gone"


def test_a_copy_goes_by_itself_when_its_maker_died_and_shows_no_later_save(
    case: StateCase,
) -> None:
    case.plant(keys=3)
    before = case.stored()
    with (
        Admin.connect(case.valkey.url, 5.0, case.group) as admin,
        admin.copy(case.topic, 0) as copy,
    ):
        (aside,) = case.names() - {case.name()}
        assert aside.startswith(case.name() + ":"), "in the same slot of a Redis Cluster"
        assert 0 < case.redis.pttl(aside) <= 3_600_000
        case.redis.hset(case.name(), mapping={"#W": "11", ":key-0": b"later"})
        assert copy is not None
        assert copy.held.meta["#W"] == "10"
        assert dict(copy.entries) == before


def test_a_partition_never_served_is_passed_over_and_a_vanished_one_is_a_problem(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert case.run("snapshot", str(tmp_path)) == 0
    assert "partition 0: no state yet, nothing to copy" in capsys.readouterr().out
    case.commit(9)
    assert case.run("snapshot", str(tmp_path)) == 1
    assert (
        "partition 0: not copied: no state in Redis, yet the group has committed an offset"
    ) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_damaged_states_are_not_copied_and_push_no_good_copy_out(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(keys=3)
    good = copied(case, tmp_path)
    case.redis.hdel(case.name(), ":key-1")
    assert case.run("snapshot", str(tmp_path), "--keep", "1") == 1
    expected = "partition 0: not copied: expected 3 key states, got 2"
    assert expected in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [good]


def test_keep_removes_the_oldest_files_of_that_partition_of_that_group_only(
    case: StateCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(0)
    case.plant(1)
    oldest = copied(case, tmp_path)
    neighbour = copied(case, tmp_path, 1)
    foreign = tmp_path / oldest.name.replace("-p0-", "-p0-w1-of-another-group-p0-")
    header = dataclasses.replace(verify(oldest), group="another")
    snapshots.write(foreign, header, entries(oldest))
    stranger = tmp_path / f"0-{case.topic}-p0-w9.keyfold"
    stranger.write_text("no snapshot")
    middle = copied(case, tmp_path)
    assert case.run("snapshot", str(tmp_path), "--partition", "0", "--keep", "2") == 0
    newest = max(set(tmp_path.glob("*-p0-w10.keyfold")) - {foreign})
    assert set(tmp_path.iterdir()) == {neighbour, foreign, stranger, middle, newest}
    assert f"partition 0: removed {oldest.name}" in capsys.readouterr().out


def test_the_loop_goes_on_whatever_a_round_meets(capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    rounds: list[int] = []

    def round_() -> int:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise Crash("Redis is away")
        if len(rounds) == 2:
            raise OSError("the disk is full")
        stop.set()
        return 0

    repeat(round_, 0.001, stop)
    assert rounds == [0, 1, 2]
    err = capsys.readouterr().err
    assert "keyfold-state: Redis is away; trying again in time\n" in err
    assert "the disk is full" in err


def test_a_partition_that_does_not_exist_or_a_folder_that_cannot_be_is_named(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert case.run("snapshot", str(tmp_path), "--partition", "2") == 2
    assert "--partition: expected 0 to 1, got 2" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert case.run("snapshot", str(tmp_path / "file")) == 2
    assert "expected a folder to write to, got: File exists" in capsys.readouterr().err


# -- restore ---------------------------------------------------------------------------------------


def test_restore_puts_the_states_back_under_a_higher_fence(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(watermark=10, keys=3 * SCAN, G="1-2", F="3", B="2")
    states, meta = case.stored(), case.meta()
    file = copied(case, tmp_path)
    taken = verify(file).taken
    case.plant(watermark=12, keys=1, E="20", F="5", R="2")
    capsys.readouterr()
    assert case.run("restore", str(file), "--yes") == 0
    assert capsys.readouterr().out == (
        f"partition 0: puts back {3 * SCAN} key states (folded up to offset 10, taken {taken}) "
        f"from {file.name}\n"
        "partition 0: replaces 1 key states (folded up to offset 12)\n"
        "A worker folds again from there; predictions from there on are emitted again, under the "
        "same ids.\n"
        "A worker that runs these partitions ends with status 70: its supervisor restarts it. "
        "One that is halted goes on within ten seconds.\n"
        "done\n"
    )
    assert case.stored() == states
    # What is out stays out, and what began anew since is not taken back.
    assert case.meta() == meta | {"#E": "21", "#O": "keyfold-state", "#F": "5", "#R": "2"}
    assert case.redis.pttl(case.name()) == -1, "a restored state never expires"
    assert case.run("list") == 0


def test_restore_into_an_empty_redis_brings_the_topic_along(
    case: StateCase, own_valkey: Valkey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(0, watermark=10, keys=3)
    case.plant(1, watermark=0, keys=0)
    assert case.run("snapshot", str(tmp_path)) == 0
    files = [str(path) for path in tmp_path.iterdir()]
    capsys.readouterr()
    assert case.run("restore", *files, "--yes", redis__url=own_valkey.url) == 0
    assert "partition 0: Redis has no state of it, nothing is replaced" in capsys.readouterr().out
    with own_valkey.client() as other:
        topic = f"{{{case.group}:{case.topic}}}"
        assert other.hget(topic, "#N") == b"2"
        assert other.exists(case.name(0), case.name(1)) == 2
        assert other.hget(case.name(0), "#E") == b"8"
    assert case.run("list", redis__url=own_valkey.url) == 0


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
def test_restore_with_exactly_once_outputs_learns_from_the_group_offset(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Outputs began anew since the snapshot: the group offset says how often."""
    case.plant(R="1", C="9")
    file = copied(case, tmp_path)
    case.redis.delete(case.name())
    case.commit(11, "keyfold:r2")
    assert case.run("restore", str(file), "--yes", worker__outputs="exactly-once") == 0
    assert "what is out up to the group offset is not emitted again." in capsys.readouterr().out
    assert (case.meta()["#R"], case.meta()["#C"]) == ("2", "")
    case.plant(R="1", C="11")
    assert case.run("restore", str(file), "--yes", worker__outputs="exactly-once") == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"group": "g"}, "expected group {group}, got g"),
        ({"topic": "t"}, "expected topic {topic}, got t"),
        ({"layout": "1"}, "expected layout 2, got 1"),
        ({"bundle": "b"}, "expected bundle {bundle}, got b"),
        ({"partitions": 3}, "expected number of partitions 2, got 3"),
        ({"meta": {}}, "expected all meta fields, got []"),
        ({"count": 2}, "expected 3 key states, got 2"),
    ],
)
def test_a_foreign_snapshot_is_refused(
    case: StateCase,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    change: dict[str, object],
    error: str,
) -> None:
    case.plant(keys=3)
    file, other = copied(case, tmp_path), tmp_path / "other.keyfold"
    header = dataclasses.replace(verify(file), **change)  # type: ignore[arg-type]
    snapshots.write(other, header, list(entries(file))[: header.count])
    before = case.meta()
    assert case.run("restore", str(other), "--yes") == 2
    wanted = error.format(group=case.group, topic=case.topic, bundle=case.bundle.id)
    assert f"{other}: {wanted}" in capsys.readouterr().err
    assert case.meta() == before


def test_a_snapshot_of_another_log_and_two_of_one_partition_are_refused(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(watermark=10)
    first, second = copied(case, tmp_path), copied(case, tmp_path)
    assert case.run("restore", str(first), str(second), "--yes") == 2
    assert f"expected one file a partition, got {first} of partition 0 too" in (
        capsys.readouterr().err
    )
    case.plant(watermark=13)
    assert case.run("restore", str(copied(case, tmp_path)), "--yes") == 2
    assert (
        "expected a watermark up to 12, where the log of partition 0 ends, got 13: it is of "
        "another log"
    ) in capsys.readouterr().err


def test_a_damaged_snapshot_is_refused_and_nothing_is_touched(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant()
    file = copied(case, tmp_path)
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    file.write_bytes(data)
    before = case.meta()
    assert case.run("restore", str(file), "--yes") == 2
    assert f"{file}: damaged: expected SHA-256 " in capsys.readouterr().err
    assert case.meta() == before
    assert case.names() == {case.name()}


@pytest.mark.usefixtures("real_kafka")  # Tansu does not delete records
def test_restore_says_which_events_are_lost_since(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(watermark=4)
    file = copied(case, tmp_path)
    case.delete_records(upto=7)
    assert case.run("restore", str(file), "--yes") == 0
    assert (
        "partition 0: events 4 to 6 are lost to retention since; a worker will HALT "
        "(worker.on_lost_range = mark-and-continue goes on)"
    ) in capsys.readouterr().out
    marking = {"worker__on_lost_range": "mark-and-continue"}
    assert case.run("restore", str(file), "--yes", **marking) == 0
    assert "keys that may miss them will be marked" in capsys.readouterr().out
    assert case.run("rebuild", "--partition", "0", "--from", str(file), "--yes") == 2
    assert (
        "partition 0: events 4 to 6 are lost to retention and cannot be folded; use a newer "
        "snapshot, or --from earliest"
    ) in capsys.readouterr().err


def test_a_state_that_is_not_whole_is_never_put_in_place(case: StateCase) -> None:
    """Negative control: the script counts what it is about to put in place."""
    case.plant(keys=3)
    before = case.stored()
    meta = case.meta()
    with Admin.connect(case.valkey.url, 5.0, case.group) as admin:
        twice = [(b"key-0", b"one"), (b"key-0", b"two")]
        with pytest.raises(Crash, match="expected 15 fields, got 14"):
            admin.install(case.topic, 0, meta, Emission(), twice)
    assert (case.stored(), case.meta()) == (before, meta)
    assert case.names() == {case.name()}


# -- rebuild from a snapshot -----------------------------------------------------------------------


def test_rebuild_from_a_snapshot_begins_with_its_states_and_emits_nothing_twice(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(watermark=6, keys=3, B="2", F="1")
    states, meta = case.stored(), case.meta()
    file = copied(case, tmp_path)
    case.plant(watermark=12, keys=5, E="20")
    capsys.readouterr()
    assert case.run("rebuild", "--partition", "0", "--from", str(file), "--yes") == 0
    out = capsys.readouterr().out
    assert f"partition 0: begins with the 3 key states of {file.name}\n" in out
    assert "partition 0: nothing about offsets below 12 is emitted (the old watermark)\n" in out
    assert case.stored() == states
    assert case.meta() == meta | {"#E": "21", "#O": "keyfold-state", "#F": "12"}
    assert case.run("rebuild", "--partition", "1", "--from", str(file), "--yes") == 2
    assert f"{file}: expected partition 1, got 0" in capsys.readouterr().err


# -- other forms of Redis --------------------------------------------------------------------------


@pytest.mark.integration
def test_everything_that_writes_works_on_a_cluster(
    case: StateCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every script's keys share one hash tag, or a cluster would refuse it."""
    with ValkeyCluster() as cluster:
        case.redis.close()
        case.redis = cast(Redis, cluster.client())
        url = {"redis__url": cluster.url}
        case.plant(0, watermark=10, keys=3 * SCAN)
        states = case.stored()
        assert case.run("snapshot", str(tmp_path), **url) == 0
        (file,) = tmp_path.iterdir()
        assert dict(entries(file)) == states
        assert case.run("rebuild", "--partition", "0", "--yes", **url) == 0
        assert case.stored() == {}
        assert case.run("restore", str(file), "--yes", **url) == 0
        assert case.stored() == states
        assert case.meta()["#E"] == "9"
        assert case.run("adopt", "--partition", "0", "--yes", **url) == 0
        assert case.run("inspect", "--key", "key-1", **url) == 0
        assert case.run("list", **url) == 0
        assert case.run("reset", "--all", "--to", "latest", "--yes", **url) == 0
        assert case.names() == {case.name(0), case.name(1)}
    capsys.readouterr()
