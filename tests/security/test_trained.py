"""Training from a topic of a secured Kafka, with no right but to read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live_worker import make_events
from secured_serving import SecuredServing

from keyfold.export.errors import Crash
from keyfold.training.config import Config, read_config
from keyfold.training.sources import read_topic

TOML = """
[data]
features = ["a", "b"]
label = "c"
kind = "regression"
key_field = "key"
[split]
by = "key"
validation_share = 0.5
[kafka]
brokers = "{brokers}"
topic = "{topic}"
timeout_s = 10
[security]
protocol = "sasl_ssl"
mechanism = "{mechanism}"
username = "{user}"
password_file = "{secret}"
ca_file = "{ca}"
"""


def settings(secured: SecuredServing) -> Config:
    """Read the settings of a training run, the password from its file."""
    file = Path(secured.folder / "training.toml")
    text = TOML.format(
        brokers=secured.kafka.at(), topic=secured.serving.input, mechanism=secured.mechanism,
        user=secured.user, secret=secured.secret, ca=secured.kafka.authority.file,
    )  # fmt: skip
    file.write_text(text, encoding="utf-8")
    return read_config(file, environment={})


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_topic_is_read_by_who_may_read_it_and_do_nothing_else(
    secured: SecuredServing, mechanism: str
) -> None:
    assert secured.mechanism == mechanism
    config = settings(secured)
    secured.serving.send(make_events(100, 7, ("a", "b", "c")))
    with pytest.raises(Crash, match="the brokers' ACLs lack Describe for User:") as caught:
        list(read_topic(config.kafka, config.connection))
    assert str(caught.value).endswith(f"--operation Describe --topic {secured.serving.input}")
    secured.allow("keyfold-train")
    chunks = list(read_topic(config.kafka, config.connection))
    assert sum(len(chunk.values) for chunk in chunks) == 100


def test_what_is_kept_beside_a_run_says_nothing_about_getting_in(secured: SecuredServing) -> None:
    kept = json.dumps(settings(secured).record(), default=str)
    assert secured.password not in kept
    assert "security" not in kept
