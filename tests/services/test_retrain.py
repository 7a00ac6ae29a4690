"""deploy/retrain: the script on a real Kafka, as cron or Kubernetes would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import confluent_kafka
import numpy as np
import pytest

from keyfold.export import bundle as contract
from keyfold.training.config import read_config
from local.service_fixtures import MakeTopic
from local.services import KafkaService
from local.services.certificates import Authority, missing_for_certificates

HERE = Path(__file__).parents[2] / "deploy/retrain"
SETTINGS = """
[kafka]
brokers = "{brokers}"
topic = "{topic}"

[data]
features = ["temp"]
time_field = "time"

[split]
by = "time"
validation_share = 0.1
test_share = 0.1

[forecast]
horizons = [1]

[model]
units = [8]

[fit]
passes = 4
stretch = 100
"""
DAY_MS = 86_400_000
UNTAUGHT = ("fit.passes=1", "fit.learning_rate=1e-9")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell would, with this environment's commands in its path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        words, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def retrain(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("sh", str(HERE / "retrain.sh"), *map(str, words), **environment)


@pytest.fixture
def topic(real_kafka: object, kafka: KafkaService, make_topic: MakeTopic) -> str:
    """Four machines that heat up and cool down; of the day before last there is something else."""
    name, draw, now = make_topic("events", partitions=2), np.random.default_rng(0), time.time_ns()
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.address, "linger.ms": 50})
    for number in range(-100, 400):
        for machine in range(4):
            at = now // 1_000_000 - 10_000 * (400 - number) - (2 * DAY_MS if number < 0 else 0)
            warm = (number + 5 * machine) % 20
            temp = f"{50 + (warm if warm < 10 else 20 - warm) + 0.1 * draw.normal():.2f}"
            value = f'{{"time":{at},"temp":{temp if number >= 0 else "null"}}}'
            producer.produce(name, value, f"m{machine}", machine % 2, timestamp=at)
        producer.poll(0)
    assert producer.flush(30) == 0
    return name


@pytest.mark.tensorflow
def test_a_better_model_becomes_the_candidate_and_a_worse_one_does_not(
    tmp_path: Path, kafka: KafkaService, topic: str
) -> None:
    config = tmp_path / "training.toml"
    config.write_text(SETTINGS.format(brokers=kafka.address, topic=topic), encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    first = ["--set", "kafka.start=-1d", *(word for s in UNTAUGHT for word in ("--set", s))]
    trained = run("keyfold-train", str(config), "--out", str(home / "runs"), *first)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    exported = run("keyfold-export", str(home / "runs/latest"), "--out", str(home / "bundles"))
    (old,) = (home / "bundles").iterdir()
    (home / "served").symlink_to(f"bundles/{old.name}")
    assert exported.returncode == 0, exported.stderr

    better = retrain(config, home, KEYFOLD_RETRAIN_DAYS="1")
    assert better.returncode == 0, better.stdout + better.stderr
    candidate = home / "candidate"
    assert candidate.resolve() != old
    provenance = contract.load(candidate.resolve()).manifest.provenance
    records = json.loads((home / "runs" / provenance["run"] / "metrics.json").read_text())
    assert records["data"]["events"] == 1600  # of the last day, and no other
    assert f"retrain: bundles/{candidate.resolve().name} is no worse than {old.name}." in (
        better.stdout
    )
    assert "keyfold-state handover worker.toml new.toml" in better.stdout

    (home / "served").unlink()  # the last of the steps that it names
    (home / "served").symlink_to(candidate.readlink())
    worse = retrain(config, home, *UNTAUGHT, KEYFOLD_RETRAIN_DAYS="1")
    assert worse.returncode == 1
    assert "expected a model no worse than training-" in worse.stderr.splitlines()[-1]
    assert len(list((home / "bundles").iterdir())) == 2
    assert candidate.resolve().name in better.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "retrain: expected CONFIG FOLDER"),
        (["none.toml", "."], "none.toml: expected the settings of keyfold-train"),
        (["training.toml", "none"], "none: expected a folder"),
        (["training.toml", "."], "./served: expected a link to the bundle in service: ln -s"),
        (["training.toml", "home", "data.files=a b"], "SECTION.NAME=VALUE without spaces, got"),
    ],
)
def test_what_is_not_set_up_is_said(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "training.toml").write_text("")
    (tmp_path / "home/served").mkdir(parents=True)
    (tmp_path / "home/served/manifest.json").write_text("{}")
    script = str(HERE / "retrain.sh")
    done = subprocess.run(["sh", script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.skipif(bool(missing_for_certificates()), reason="needs openssl")
def test_the_example_s_settings_are_those_of_keyfold_train(tmp_path: Path) -> None:
    text = (HERE / "training.toml").read_text(encoding="utf-8")
    (tmp_path / "kafka").write_text("secret\n")
    Authority(tmp_path, "ca")
    file = tmp_path / "training.toml"
    file.write_text(text.replace("/run/secrets/keyfold", str(tmp_path)), encoding="utf-8")
    config = read_config(file, ["kafka.start=-30d"], {})
    assert (config.security.password, config.kafka.start) == ("secret", "-30d")
    assert (config.security.mechanism, config.split.by) == ("SCRAM-SHA-512", "time")


def test_cron_and_kubernetes_run_the_script_with_what_they_mount() -> None:
    yaml: Any = pytest.importorskip("yaml")  # yamllint's
    job = yaml.safe_load((HERE / "cronjob.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["sh", f"{mounts['config']}/{HERE.joinpath('retrain.sh').name}"]
    assert container["args"] == [f"{mounts['config']}/training.toml", mounts["data"]]
    secrets = (HERE / "training.toml").read_text(encoding="utf-8").count(f'"{mounts["secrets"]}/')
    assert secrets == 2
    assert {e["name"] for e in container["env"]} == {"KEYFOLD_RETRAIN_DAYS"}
    (line,) = [
        text for text in (HERE / "crontab").read_text(encoding="utf-8").splitlines()
        if text[:1].isdigit()
    ]  # fmt: skip
    schedule, _, command = line.partition(" flock ")
    assert schedule == job["spec"]["schedule"]
    assert command.split()[2:] == [
        "sh", "/srv/keyfold/retrain.sh", "/srv/keyfold/training.toml", "/srv/keyfold",
    ]  # fmt: skip
