"""Security: contradictions fail by the setting's name, and no secret is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keyfold.export.connection import Connection, Security
from keyfold.export.settings import SettingsError
from keyfold.worker.config import read_config
from local.services import Authority, missing_for_certificates

SECRET = "hunter2"
SASL: dict[str, Any] = {"mechanism": "PLAIN", "username": "me", "password": SECRET}
WORKER = '[kafka]\nbrokers = "b:1"\ninput = "i"\noutput = "o"\n[worker]\nbundle = "x"\n'

needs_certificates = pytest.mark.skipif(
    bool(missing_for_certificates()), reason="needs openssl"
)  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority of these tests' own."""
    return Authority(tmp_path_factory.mktemp("ca"))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a login without its protocol": (
        {"protocol": "ssl", **SASL},
        "mechanism: expected none with protocol = 'ssl'; SASL needs 'sasl_ssl'",
    ),
    "a password alone": ({"password": SECRET}, "password: expected none with protocol"),
    "no mechanism": (
        {"protocol": "sasl_ssl", "username": "me", "password": SECRET},
        "mechanism: expected one with protocol = 'sasl_ssl'",
    ),
    "no username": (
        {"protocol": "sasl_plaintext", "mechanism": "PLAIN", "password": SECRET},
        "username: expected one with protocol = 'sasl_plaintext'",
    ),
    "no password": (
        {"protocol": "sasl_ssl", "mechanism": "PLAIN", "username": "me"},
        "password: expected one with protocol = 'sasl_ssl'",
    ),
    "an authority without TLS": (
        {"protocol": "sasl_plaintext", **SASL, "ca_file": Path("ca.pem")},
        "ca_file: expected none with protocol = 'sasl_plaintext'; TLS needs 'ssl' or 'sasl_ssl'",
    ),
    "a missing authority": (
        {"protocol": "ssl", "ca_file": Path("/nowhere/ca.pem")},
        "ca_file: not readable: /nowhere/ca.pem: No such file",
    ),
    "a key's password without a key": (
        {"protocol": "ssl", "key_password": SECRET}, "key_password: expected none without key_file"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictory_settings_fail_by_name_and_show_no_secret(case: str) -> None:
    given, message = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=r"^\w+: ") as caught:
        Security(**given)
    assert str(caught.value).startswith(message)
    assert SECRET not in str(caught.value)


@needs_certificates
def test_certificates_that_tls_cannot_use_fail_by_name(
    authority: Authority, tmp_path: Path
) -> None:
    mine, locked = authority.issue("mine"), authority.issue("locked", password=SECRET)
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate\n")
    ca = authority.file
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"ca_file": nothing}, f"ca_file: expected certificates in PEM, got none in {nothing}"),
        ({"cert_file": mine.cert}, "key_file: expected one beside cert_file"),
        ({"key_file": mine.key}, "cert_file: expected one beside key_file"),
        ({"cert_file": mine.cert, "key_file": locked.key}, "cert_file, key_file: expected a"),
        ({"cert_file": locked.cert, "key_file": locked.key}, "cert_file, key_file: expected a"),
        ({"cert_file": mine.cert, "key_file": tmp_path}, "key_file: not readable"),
    )
    for given, message in cases:
        with pytest.raises(ValueError, match=r"^[\w, ]+: ") as caught:
            Security("ssl", **{"ca_file": ca, **given})
        assert str(caught.value).startswith(message)
    Security(
        "ssl", ca_file=ca, cert_file=locked.cert, key_file=locked.key, key_password=SECRET
    )  # fmt: skip


@needs_certificates
def test_both_libraries_are_told_all_of_it(authority: Authority) -> None:
    mine = authority.issue("mine")
    security = Security("sasl_ssl", **SASL, ca_file=authority.file, cert_file=mine.cert,
                        key_file=mine.key)  # fmt: skip
    connection = Connection("a:1, b:2", security)
    assert connection.librdkafka() == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": SECRET,
        "ssl.ca.location": str(authority.file),
        "ssl.certificate.location": str(mine.cert),
        "ssl.key.location": str(mine.key),
    }
    told = connection.aiokafka()
    assert told.pop("ssl_context").check_hostname
    assert told == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "me",
        "sasl_plain_password": SECRET,
    }


def test_brokers_alone_are_plaintext_and_shown_as_they_are() -> None:
    connection = Connection.of("a:1")
    assert str(connection) == "a:1"
    assert connection.librdkafka() == {
        "bootstrap.servers": "a:1", "security.protocol": "plaintext"
    }  # fmt: skip
    assert Connection.of(connection) is connection


def test_no_secret_shows_in_any_form_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    security = f'protocol = "sasl_plaintext"\nmechanism = "PLAIN"\npassword = "{SECRET}"\n'
    redis = f'url = "rediss://me:{SECRET}@h:1/0"\n'
    file.write_text(f'{WORKER}[security]\n{security}username = "me"\n[redis]\n{redis}')
    config = read_config(file, environment={})
    assert config.connection.security.password == SECRET
    for shown in (config, config.connection, config.redis, config.redis.access, config.security):
        assert SECRET not in f"{shown!r} {shown}"


def test_secrets_come_from_files_that_the_settings_or_the_environment_name(tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "worker.toml"
    secret.write_text(f"{SECRET}\n")
    security = '[security]\nprotocol = "sasl_plaintext"\nmechanism = "PLAIN"\nusername = "me"\n'
    file.write_text(f"{WORKER}{security}")
    environment = {
        "KEYFOLD_SECURITY__PASSWORD_FILE": str(secret), "KEYFOLD_REDIS__PASSWORD_FILE": str(secret)
    }  # fmt: skip
    config = read_config(file, environment=environment)
    assert config.security.password == SECRET
    assert config.redis.access.whole_url == f"redis://:{SECRET}@127.0.0.1:6379/0"
    file.write_text(f'{WORKER}{security}password_file = "{secret}"\n')
    assert read_config(file, environment={}).security.password == SECRET


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['security.protocol="tls"'], "security.protocol: expected one of 'plaintext', 'ssl'"),
        (["security.username=me"], "security.username: expected none with protocol"),
        (["redis.username=me"], "redis.password: expected one beside username"),
        (["redis.ca_file=ca.pem"], "redis.ca_file: expected none without TLS: redis.url begins"),
        (["redis.url=rediss://h", "redis.ca_file=/nowhere"], "redis.ca_file: not readable"),
        (["redis.sentinel_username=me"], "redis.sentinel_password: expected one beside"),
    ],
)
def test_a_worker_s_contradictions_are_named_with_their_section(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(WORKER)
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        read_config(file, settings, environment={})


def test_a_redis_login_in_both_places_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    redis = f'[redis]\nurl = "redis://me:{SECRET}@h"\nusername = "me"\npassword = "{SECRET}"\n'
    file.write_text(WORKER + redis)
    with pytest.raises(SettingsError, match=r"redis\.password: .* not in both") as caught:
        read_config(file, environment={})
    assert SECRET not in str(caught.value)


def test_every_client_of_kafka_is_made_from_a_connection() -> None:
    """Elsewhere brokers would be reached without TLS and login."""
    root = Path(__file__).parents[2]
    allowed = {root / "export" / "connection.py"}
    words = ('"bootstrap.servers"', "bootstrap_servers", "kafka.brokers,", "kafka.brokers)")
    found = [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for folder in ("worker", "training", "export")
        for file in sorted((root / folder).rglob("*.py"))
        if file not in allowed
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if any(word in line for word in words) and not ("Connection(" in line or "help=" in line)
    ]
    assert found == []
