"""The worker's settings: defaults, contradictions by name, and no secret in any error text.

Precedence and conversion are tested with export.settings; here is what the settings mean together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from keyfold.worker.config import Config, SettingsError, read_config
from keyfold.worker.store import Store

LEAST = ["kafka.brokers=localhost:9092", "kafka.input=events", "kafka.output=predictions",
         "worker.bundle=bundle"]  # fmt: skip


def read(*flags: str, **environment: str) -> Config:
    return read_config(None, [*LEAST, *flags], environment)


def test_least_settings_give_the_defaults_and_no_start() -> None:
    config = read()
    assert config.kafka.dead_letter == "events.rejects"
    assert config.kafka.group == "keyfold"
    assert config.worker.start == ""
    assert config.worker.bundle == Path("bundle")
    assert config.redis.url == "redis://127.0.0.1:6379/0"


def test_settings_come_from_file_environment_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbrokers = "b:1"\ninput = "i"\noutput = "o"\n'
        '[worker]\nbundle = "x"\nstart = "latest"\nsave_every_ms = 50\n'
    )
    config = read_config(file, ["worker.start=earliest"], {"KEYFOLD_WORKER__SAVE_EVERY_MS": "100"})
    assert config.worker.start == "earliest"
    assert config.worker.save_every_ms == 100


@pytest.mark.parametrize("missing", LEAST)
def test_what_has_no_default_is_asked_for_by_name(missing: str) -> None:
    name = missing.partition("=")[0]
    with pytest.raises(SettingsError, match=f"{name} is required and has no default"):
        read_config(None, [flag for flag in LEAST if flag != missing], {})


CONTRADICTIONS = {
    "kafka.output=events": r"kafka\.output: expected another topic than kafka\.input",
    "kafka.dead_letter=events": r"kafka\.dead_letter: expected a topic of its own",
    "kafka.dead_letter=predictions": r"kafka\.dead_letter: expected a topic of its own",
    "kafka.session_timeout_s=31": r"kafka\.session_timeout_s: expected at most kafka\.request",
    "kafka.compression=brotli": r"kafka\.compression: expected one of 'none', 'gzip'",
    "kafka.session_timeout_s=0": r"kafka\.session_timeout_s: expected",
    "kafka.request_timeout_s=nan": r"kafka\.request_timeout_s: expected",
    "kafka.group=": r"kafka\.group: expected",
    "kafka.input=": r"kafka\.input: expected",
    "worker.start=newest": r"worker\.start: expected earliest, latest, a time .* got 'newest'",
    "worker.start=now": r"worker\.start: expected earliest, latest, a time .* got 'now'",
    "worker.emit_from=latest": r"worker\.emit_from: expected now, a time .* got 'latest'",
    "worker.emit_from=-1week": r"worker\.emit_from: expected now, a time .* got '-1week'",
    "worker.max_events=0": r"worker\.max_events: expected at least 1, got 0",
    "worker.max_buffer_bytes=0": r"worker\.max_buffer_bytes: expected at least 1",
    "worker.max_resident_keys=-5": r"worker\.max_resident_keys: expected at least 1",
    "worker.save_every_ms=-1": r"worker\.save_every_ms: expected at least 0",
    "worker.drain_s=-0.1": r"worker\.drain_s: expected at least 0",
    "worker.drain_s=nan": r"worker\.drain_s: expected",
    "worker.drain_s=x": r"worker\.drain_s: expected float, got text",
    "redis.timeout_s=0": r"redis\.timeout_s: expected",
    "redis.url=localhost:6379": r"redis\.url: expected",
}


@pytest.mark.parametrize("flag", CONTRADICTIONS)
def test_setting_that_cannot_be_meant_is_refused_by_name(flag: str) -> None:
    with pytest.raises(SettingsError, match=CONTRADICTIONS[flag]):
        read(flag)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@host:port/0",
        "redis://user:hun/ter2hunter2@host:6379/0",
        "redis://hunter2:99999999@host/x",
        "rediz://user:hunter2@host:6379/0",
        "redis://[hunter2",
    ],
)
def test_wrong_redis_url_is_refused_at_start_without_showing_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"redis\.url") as caught:
        Store.connect(read(KEYFOLD_REDIS__URL=url).redis.url, 5.0, "group")
    assert "hunter2" not in str(caught.value)
    assert "hun" not in str(caught.value)


LOGINS = (
    "redis://user:hunter2@host:6379/0",
    "redis://:hunter2@host",
    "rediss+sentinel://user:hunter2@h:1,h:2/service",
    "redis://host/0?password=hunter2",
    "unix:///run/redis.sock?db=0&password=hunter2",
)


@pytest.mark.parametrize("url", LOGINS)
def test_redis_url_with_a_password_is_refused_as_a_flag(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read(f"redis.url={url}")
    assert str(caught.value) == (
        "--set redis.url: everybody on this machine can see a flag (ps); give redis.url_file, or "
        "an environment variable"
    )
    file = tmp_path / "url"
    file.write_text(url)
    for config in (read(KEYFOLD_REDIS__URL=url), read(f"redis.url_file={file}")):
        assert config.redis.url == url


@pytest.mark.parametrize("url", ["redis://user@h:6379/0", "redis+sentinel://h:1,i:2/service"])
def test_redis_url_without_a_password_may_be_a_flag(url: str) -> None:
    assert read(f"redis.url={url}").redis.url == url


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        read().worker.max_events = 5  # type: ignore[misc]
