"""How a Kafka is reached: its brokers, TLS and SASL, as each client library wants to be told.

Owns the [security] section of worker.toml and of a training configuration, its contradictions, and
the only place where a client's address and secrets are put together. Knows no topic and opens no
connection; certificates are read, so that a wrong file fails at start by name. What a client says
when it is not let in is put into words by export/refusals.py. Used by training and the worker.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SECRET = {"secret": True}  # as a field's metadata: never a flag, which `ps` shows


@dataclass(frozen=True, slots=True)
class Security:
    """What the brokers want: the section [security]."""

    protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"  # listener's
    mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""  # SASL: no default
    username: str = ""  # SASL
    password: str = field(default="", repr=False, metadata=SECRET)  # SASL; best by password_file
    ca_file: Path | None = None  # TLS: PEM of who signed the brokers; none: the system's
    cert_file: Path | None = None  # TLS: PEM of our certificate, where brokers ask for one
    key_file: Path | None = None  # TLS: PEM of its private key
    key_password: str = field(default="", repr=False, metadata=SECRET)  # of an encrypted key

    def __post_init__(self) -> None:
        if self.sasl:
            for name in ("mechanism", "username", "password"):
                if not getattr(self, name):
                    raise ValueError(f"{name}: expected one with protocol = {self.protocol!r}")
        for name in ("mechanism", "username", "password"):
            if getattr(self, name) and not self.sasl:
                raise ValueError(
                    f"{name}: expected none with protocol = {self.protocol!r}; "
                    "SASL needs 'sasl_ssl' or 'sasl_plaintext'"
                )
        for name in ("ca_file", "cert_file", "key_file", "key_password"):
            if getattr(self, name) and not self.tls:
                raise ValueError(
                    f"{name}: expected none with protocol = {self.protocol!r}; "
                    "TLS needs 'ssl' or 'sasl_ssl'"
                )
        if self.tls:
            check_files(self.ca_file, self.cert_file, self.key_file, self.key_password)

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.protocol in ("ssl", "sasl_ssl")

    @property
    def sasl(self) -> bool:
        """Whether a user logs in."""
        return self.protocol.startswith("sasl_")


@dataclass(frozen=True, slots=True)
class Connection:
    """Brokers and how to get in; shown as the brokers alone."""

    brokers: str  # "host:port,host:port"
    security: Security = field(default_factory=Security)  # plaintext, nobody logs in

    def __str__(self) -> str:
        return self.brokers

    @classmethod
    def of(cls, kafka: Connection | str) -> Connection:
        """Return a connection; brokers alone are plaintext ones (tests, the demo's own broker)."""
        return kafka if isinstance(kafka, Connection) else cls(kafka)

    @property
    def addresses(self) -> list[str]:
        """Return each broker's host:port."""
        return [broker.strip() for broker in self.brokers.split(",")]

    def librdkafka(self) -> dict[str, Any]:
        """Return what every client of confluent-kafka is to be made with."""
        security = self.security
        found = {
            "bootstrap.servers": ",".join(self.addresses),
            "security.protocol": security.protocol,
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password,
            "ssl.ca.location": _text(security.ca_file),
            "ssl.certificate.location": _text(security.cert_file),
            "ssl.key.location": _text(security.key_file),
            "ssl.key.password": security.key_password,
        }
        return {name: value for name, value in found.items() if value}

    def aiokafka(self) -> dict[str, Any]:
        """Return what every client of aiokafka is to be made with."""
        security = self.security
        found: dict[str, Any] = {
            "bootstrap_servers": self.addresses,
            "security_protocol": security.protocol.upper(),
        }
        if security.tls:
            found["ssl_context"] = self.ssl_context()
        if security.sasl:
            found["sasl_mechanism"] = security.mechanism
            found["sasl_plain_username"] = security.username
            found["sasl_plain_password"] = security.password
        return found

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return how the brokers' certificates are judged and ours is shown; None: no TLS."""
        security = self.security
        if not security.tls:
            return None
        return client_context(
            security.ca_file, security.cert_file, security.key_file, security.key_password
        )


def check_files(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None, key_password: str
) -> None:
    """Raise ValueError, beginning with the setting's name, for files that TLS cannot use."""
    for name, file in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
        if file is not None:
            _check_readable(name, file)
    if ca_file is not None:
        try:
            found = ssl.create_default_context(cafile=ca_file).get_ca_certs()
        except (ssl.SSLError, ValueError):
            found = []
        if not found:
            raise ValueError(f"ca_file: expected certificates in PEM, got none in {ca_file}")
    if (cert_file is None) != (key_file is None):
        name, other = ("key_file", "cert_file") if key_file is None else ("cert_file", "key_file")
        raise ValueError(f"{name}: expected one beside {other}, which is of no use alone")
    if cert_file is None and key_password:
        raise ValueError("key_password: expected none without key_file")
    if cert_file is not None:
        try:
            client_context(ca_file, cert_file, key_file, key_password)
        except ssl.SSLError as error:
            raise ValueError(
                f"cert_file, key_file: expected a certificate and its key in PEM, and the key's "
                f"key_password if it is encrypted, got {cert_file} and {key_file} "
                f"({error.reason or 'not PEM'})"
            ) from error


def client_context(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None, key_password: str
) -> ssl.SSLContext:
    """Return a context that demands the server's certificate and its host's name in it."""
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        # Never None: OpenSSL would ask at the terminal for an encrypted key's password.
        context.load_cert_chain(cert_file, key_file, password=key_password)
    return context


def _check_readable(name: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name}: not readable: {file}: {error.strerror}") from error


def _text(file: Path | None) -> str:
    return "" if file is None else str(file)
