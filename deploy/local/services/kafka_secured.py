"""A real Kafka with TLS, SASL and ACLs, as a cautious operator would run it.

Owns its listeners, users and grants. The tests' own admin client goes through the PLAINTEXT
listener, whose user ANONYMOUS may do all; every other listener lets nobody in unknown, and nobody
do what was not granted (StandardAuthorizer).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it declares no exports
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from .certificates import Authority
from .child import LOOPBACK
from .kafka import ApacheKafka, Node
from .kafka_admin import ADMIN_TIMEOUT_S

PLAIN_USERS = {"plain": "plain's secret, with = and ;"}  # PLAIN's are fixed when a broker starts
SASL = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
_LOGIN = "org.apache.kafka.common.security"
# Name of each listener, and its protocol.
LISTENERS = {
    "SECURE": "SASL_SSL",  # what the tests use
    "MUTUAL": "SSL",  # demands a client's certificate
    "OPEN": "SASL_PLAINTEXT",  # offers PLAIN only
    "EXPIRED": "SASL_SSL",  # shows a certificate of yesterday
    "ELSEWHERE": "SASL_SSL",  # shows one of another host
}


class SecuredKafka(ApacheKafka):
    """One broker; SECURE is the listener that clients should use, see LISTENERS."""

    name: ClassVar[str] = "kafka-secured"
    ports_needed: ClassVar[int] = 3 + len(LISTENERS)

    def __init__(self, version: str | None = None, *, folder: Path | None = None) -> None:
        """Prepare the broker and its certificates."""
        super().__init__(version, folder=folder)
        self.authority = Authority(self.folder / "certificates")
        self.client_certificate = self.authority.issue("client")
        self._shown = {
            "EXPIRED": self.authority.issue("expired", days=-1).both,
            "ELSEWHERE": self.authority.issue("elsewhere", ["DNS:kafka.example.org"]).both,
        }
        self._server = self.authority.issue("broker").both

    @property
    def node(self) -> Node:
        """Return its place in the cluster."""
        return Node(1, *self._ports[:2])

    def at(self, listener: str = "SECURE") -> str:
        """Return the address of one of LISTENERS."""
        return f"{LOOPBACK}:{self._ports[3 + list(LISTENERS).index(listener)]}"

    def command(self) -> list[str]:
        """Write the settings for these ports and return the broker's command line."""
        own, controller = f"PLAINTEXT://{self.address}", f"CONTROLLER://{LOOPBACK}:{self._ports[1]}"
        others = [f"{name}://{self.at(name)}" for name in LISTENERS]
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **LISTENERS}
        self.settings = {
            "listeners": ",".join([own, *others, controller]),
            "advertised.listeners": ",".join([own, *others]),
            "listener.security.protocol.map": ",".join(f"{n}:{p}" for n, p in protocols.items()),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            **_tls("", self._server, self.authority.file),
            **_sasl("SECURE", SASL),
            **_sasl("OPEN", "PLAIN"),
            "listener.name.mutual.ssl.client.auth": "required",
        }
        for name, keystore in self._shown.items():
            prefix = f"listener.name.{name.lower()}."
            self.settings |= {**_tls(prefix, keystore, self.authority.file), **_sasl(name, SASL)}
        return super().command()

    def add_user(self, name: str, password: str, mechanism: str = "SCRAM-SHA-512") -> None:
        """Let a user in who proves to know the password by SCRAM."""
        kinds = {
            "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
            "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
        }
        wanted = UserScramCredentialUpsertion(
            name, ScramCredentialInfo(kinds[mechanism], 4096), password.encode()
        )
        admin = self.admin()
        admin.alter_user_scram_credentials([wanted])[name].result(ADMIN_TIMEOUT_S)

    def allow(self, grants: Iterable[AclBinding]) -> None:
        """Add ACLs."""
        admin = self.admin()
        for done in admin.create_acls(list(grants)).values():
            done.result(ADMIN_TIMEOUT_S)

    def forbid(self, grants: Iterable[AclBinding]) -> None:
        """Take ACLs back."""
        filters = [
            AclBindingFilter(
                one.restype, one.name, one.resource_pattern_type, one.principal, one.host,
                one.operation, one.permission_type,
            )
            for one in grants
        ]  # fmt: skip
        admin = self.admin()
        for done in admin.delete_acls(filters).values():
            done.result(ADMIN_TIMEOUT_S)


def grant(user: str, operation: str, kind: str, name: str, *, prefixed: bool = False) -> AclBinding:
    """Return one ACL: "Read", "topic", "engines"."""
    pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
    types: Mapping[str, Any] = {
        "topic": ResourceType.TOPIC,
        "group": ResourceType.GROUP,
        "transactional-id": ResourceType.TRANSACTIONAL_ID,
        "cluster": ResourceType.BROKER,
    }
    return AclBinding(
        types[kind], name, pattern, f"User:{user}", "*",
        getattr(AclOperation, _words(operation)), AclPermissionType.ALLOW,
    )  # fmt: skip


def _words(operation: str) -> str:
    """Return DESCRIBE_CONFIGS for DescribeConfigs."""
    text = "".join(f"_{letter}" if letter.isupper() else letter for letter in operation)
    return text.strip("_").upper()


def _tls(prefix: str, keystore: Path, truststore: Path) -> dict[str, str]:
    return {
        f"{prefix}ssl.keystore.type": "PEM",
        f"{prefix}ssl.keystore.location": str(keystore),
        f"{prefix}ssl.truststore.type": "PEM",
        f"{prefix}ssl.truststore.location": str(truststore),
    }


def _sasl(listener: str, mechanisms: str) -> dict[str, str]:
    prefix = f"listener.name.{listener.lower()}."
    users = " ".join(f'user_{name}="{password}"' for name, password in PLAIN_USERS.items())
    return {
        f"{prefix}sasl.enabled.mechanisms": mechanisms,
        f"{prefix}plain.sasl.jaas.config": f"{_LOGIN}.plain.PlainLoginModule required {users};",
        **{
            f"{prefix}{name}.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;"
            for name in ("scram-sha-256", "scram-sha-512")
        },
    }
