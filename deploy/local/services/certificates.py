"""A certificate authority of a test's own, and what it signs: for TLS in front of the services.

Owns the calls of the program `openssl`. Keys are elliptic and valid for two days; nothing here is
for use outside of tests. Called by kafka_secured.py, tls_front.py and tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .child import LOOPBACK, ServiceError

HERE = (f"IP:{LOOPBACK}", "DNS:localhost")
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key, both PEM."""

    cert: Path  # certificate
    key: Path  # PKCS 8
    both: Path  # key, certificate: what Kafka calls a PEM keystore


class Authority:
    """Signs certificates in a folder."""

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        """Make the authority's own certificate."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        subject = ("-subj", f"/CN={name}", "-days", "2")
        out = ("-keyout", str(self._key), "-out", str(self.file))
        _openssl("req", "-x509", *NEW_KEY, "-nodes", *subject, *out)

    def issue(
        self, name: str, hosts: Sequence[str] = HERE, *, days: int = 2, password: str = ""
    ) -> Certificate:
        """Sign a certificate for `hosts`; one of -1 days has expired; `password` encrypts the key.

        `name` is its common name: Kafka's principal of a client's certificate is User:CN=name.
        """
        made = Certificate(*(self.folder / f"{name}.{end}" for end in ("pem", "key", "both.pem")))
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        lock = ("-passout", "env:KEYFOLD_TEST_PASSWORD") if password else ("-nodes",)
        out = ("-keyout", str(made.key), "-out", str(request))
        _openssl("req", "-new", *NEW_KEY, *lock, "-subj", f"/CN={name}", *out, password=password)
        extensions.write_text(f"subjectAltName={','.join(hosts)}\n")
        signer = ("-CA", str(self.file), "-CAkey", str(self._key), "-CAcreateserial")
        _openssl(
            *("x509", "-req", "-in", str(request), *signer, "-days", str(days)),
            *("-extfile", str(extensions), "-out", str(made.cert)),
        )
        made.both.write_text(made.key.read_text() + made.cert.read_text())
        return made


def missing_for_certificates() -> str:
    """Return what has to be installed first, "" when all is there."""
    return "" if shutil.which("openssl") else "the program openssl"


def _openssl(*arguments: str, password: str = "") -> None:
    program = shutil.which("openssl")
    if program is None:
        raise ServiceError(
            "certificates need the program openssl (Debian: apt-get install openssl)"
        )
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env={**os.environ, "KEYFOLD_TEST_PASSWORD": password}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise ServiceError(f"openssl {' '.join(arguments)} failed:\n{done.stderr}")
