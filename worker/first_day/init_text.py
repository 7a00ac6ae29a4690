"""The text of a first worker.toml: every setting of the first day, explained where it stands.

Owns the words. A commented-out setting is written `#name = value`, without a space, and is valid
once the # is gone; prose is `# like this`. Called by init.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keyfold.export.bundle import Manifest
from keyfold.worker.columns import wrapped
from keyfold.worker.emission import fields_of
from keyfold.worker.first_day.example_events import KEY, Example

PARTITIONS = 4  # of the topics in the example commands


@dataclass(frozen=True, slots=True)
class Names:
    """What the file is about, as far as it was given on the command line."""

    bundle: Path  # folder
    brokers: str  # "host:port,host:port"
    input: str  # topic of events
    output: str  # topic of predictions
    group: str  # consumer group
    redis: str  # URL


def settings_text(
    file: str, names: Names, manifest: Manifest, examples: Sequence[Example], out: Sequence[bytes]
) -> str:
    """Return the text of worker.toml; `out` are the predictions of the example events."""
    settings = _SETTINGS.format(**_quoted(names, manifest))
    return "\n".join(
        (*_head(file, manifest), *_events(names, manifest, examples, out), *_topics(names),
         settings, *_emit(names, manifest))
    )  # fmt: skip


def topic_commands(names: Names) -> list[str]:
    """Return the commands that create the three topics, each in two lines of a shell."""
    tool = f"kafka-topics.sh --bootstrap-server {names.brokers} --create"
    topics = (names.input, names.output, f"{names.input}.rejects")
    return [
        line
        for topic in topics
        for line in (f"{tool} \\", f"    --partitions {PARTITIONS} --topic {topic}")
    ]


def _head(file: str, manifest: Manifest) -> list[str]:
    return [
        f"# Settings of a keyfold worker that serves bundle {manifest.id}.",
        "#",
        f"#   keyfold-worker check {file}       looks at everything it needs, changes nothing",
        f"#   keyfold-worker {file} --dry-run   runs the model over records, writes nothing",
        f"#   keyfold-worker {file}             serves",
        "#",
        "# Take the # from a setting to use it. Each one may also be given as",
        "# --set section.name=value or in the environment: KEYFOLD_SECTION__NAME=value; a",
        "# secret in a file of its own: name_file = path, KEYFOLD_SECTION__NAME_FILE=path.",
        "",
    ]


def _events(
    names: Names, manifest: Manifest, examples: Sequence[Example], out: Sequence[bytes]
) -> list[str]:
    lines = ["# Events that this bundle accepts, one record each, under the record key"]
    lines.append(f"# {KEY} (the record's key is whose history it is; all history of a key is in")
    lines.append("# one partition):")
    lines += [f"#   {example.value.decode()}" for example in examples]
    lines += ["#", *(f"# {line}" for line in wrapped("", _kinds(manifest), 78))]
    lines += ["#", "# What it predicts for these, in the output topic, under the same key:"]
    lines += [f"#   {payload.decode()}" for payload in out] or ["#   (not computed)"]
    return [*lines, ""]


def _kinds(manifest: Manifest) -> str:
    """Say what is required of an event in a sentence."""
    missing = [f.name for f in manifest.features.fields if f.missing != "error"]
    said = "Further members are ignored."
    if missing and manifest.features.long is None:
        said = f"{said} These may be missing or null: {', '.join(missing)}."
    hook = getattr(manifest.events, "decoder", "")
    if hook:
        said = f"{said} Records are decoded by {hook}: this is what it has to return."
    return said.replace("\n", " ")


def _topics(names: Names) -> list[str]:
    return [
        "# The topics must exist, input and output with equally many partitions (the worker",
        "# never creates any). With more brokers add --replication-factor 3; a secured Kafka",
        "# wants --command-config FILE:",
        *(f"#   {command}" for command in topic_commands(names)),
        "",
    ]


def _emit(names: Names, manifest: Manifest) -> list[str]:
    """Explain section [emit] by what this bundle puts out; it has none where it is refused."""
    if not manifest.outputs.is_straight:
        return []
    field = fields_of(manifest.outputs)[0]
    path, alerts = (
        json.dumps(t, ensure_ascii=False) for t in (field.path, f"{names.input}-alerts")
    )
    step, test = [], ['#equals = "true"              # or "false"']
    if field.labels:
        # Of symbols the first name is the blank's: none that a prediction tells.
        label = field.labels[1 if field.kind == "symbol" else 0]
        test = [f"#equals = {json.dumps(label, ensure_ascii=False)}"]
    if field.kind == "number":
        step = ["# A number has changed when it differs by so much from the last one emitted:",
                "#step = 1.0"]  # fmt: skip
        test = ["#above = 10.0", "#below = 2.0"]
    return [
        "[emit]                         # which predictions go out; default: every one",
        "# What goes to the output topic: all, on_change (the value is another than in the",
        "# key's last emitted prediction), when (the condition below is met):",
        '#what = "on_change"',
        "# What is looked at in the prediction's output:",
        f"#field = {path}",
        *step,
        "# The condition of what = when and of alerts, at k of the key's last n events:",
        *test,
        "#k = 2",
        "#n = 3",
        "# What meets the condition goes to this topic too (not with what = when); it has as",
        "# many partitions as the input:",
        f"#alert_topic = {alerts}",
        "",
    ]


def _quoted(names: Names, manifest: Manifest) -> dict[str, str]:
    values = {
        "brokers": names.brokers, "input": names.input, "output": names.output,
        "group": names.group, "redis": names.redis, "bundle": str(names.bundle),
        "dead_letter": f"{names.input}.rejects",
        "key_field": manifest.events.key_field or "machine",
    }  # fmt: skip
    # A JSON string is a basic string of TOML, too.
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


_SETTINGS = """\
[kafka]
brokers = {brokers}
input = {input}
output = {output}
# The consumer group also names the states in Redis: each bundle in service has its own.
group = {group}
# What cannot be an event goes to this topic, with the reason:
#dead_letter = {dead_letter}
# The events' own field that the record key must equal (then it is checked at start):
#key_field = {key_field}
#compression = "lz4"           # of what is emitted: none, gzip, snappy, lz4, zstd
#request_timeout_s = 30.0

[security]                     # how Kafka is reached
#protocol = "sasl_ssl"         # plaintext, ssl, sasl_plaintext, sasl_ssl
#mechanism = "SCRAM-SHA-512"   # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
#username = "keyfold"
#password_file = "kafka.secret"
#ca_file = "ca.pem"            # who signed the brokers' certificates; else the system's
#cert_file = "client.pem"      # only where brokers ask for a certificate of ours
#key_file = "client.key"

[redis]                        # run it with maxmemory-policy noeviction, appendonly yes
# redis://host:port/db, rediss://... for TLS, unix:///path/of/socket,
# redis+sentinel://host:port,host:port/SERVICE, redis+cluster://host:port,host:port
url = {redis}
#username = "keyfold"
#password_file = "redis.secret"
#ca_file = "redis-ca.pem"      # with rediss://: who signed the server's certificate

[worker]
bundle = {bundle}
# Where a new group begins (a group that has states goes on from them):
#   earliest   all that the log still holds: every key's whole history
#   latest     what comes from now on: every key starts cold
#   -7d, or a time such as 2026-01-31T06:00:00Z
start = "earliest"
#emit_from = "now"             # a new group folds silently up to there, then emits
# members of the event that its prediction repeats as "event" (null above 64 KiB):
#passthrough = ["time"]
#outputs = "exactly-once"      # one transaction per turn; default: at-least-once
#on_bundle_change = "rebuild"  # states of another bundle: halt (default), rebuild, reset
#save_every_ms = 100           # 0 (default): save after each micro-batch
#web_port = 6066               # /live /ready /health on loopback; default: off
"""
