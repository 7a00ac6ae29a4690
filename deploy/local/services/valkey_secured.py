"""A Valkey with TLS and ACL users, as a cautious operator would run it.

Owns its users and the TLS before it (tls_front.py: PyPI's Valkey is built without). The tests' own
client goes past both, as the user `default`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from .certificates import Authority
from .tls_front import TlsFront
from .valkey import Valkey


class SecuredValkey(Valkey):
    """One server; `secure_url` is where clients should go."""

    name: ClassVar[str] = "valkey-secured"

    def __init__(self, folder: Path | None = None) -> None:
        """Prepare the server and its certificates."""
        super().__init__(folder)
        self.authority = Authority(self.folder / "certificates")
        self.client_certificate = self.authority.issue("client")
        self._fronts = ExitStack()
        self._ports_by_name: dict[str, int] = {}

    def start(self) -> SecuredValkey:
        """Start the server and what stands before it."""
        super().start()
        if self._ports_by_name:
            return self
        authority = self.authority
        fronts = {
            "secure": TlsFront(self.address, authority.issue("valkey")),
            "mutual": TlsFront(self.address, authority.issue("mutual"), authority),
            "expired": TlsFront(self.address, authority.issue("expired", days=-1)),
            "elsewhere": TlsFront(self.address, authority.issue("else", ["DNS:redis.example.org"])),
        }
        for name, front in fronts.items():
            self._ports_by_name[name] = self._fronts.enter_context(front).port
        return self

    def close(self) -> None:
        """Kill it and end the TLS before it."""
        self._fronts.close()
        super().close()

    def secure_url(self, front: str = "secure", scheme: str = "rediss") -> str:
        """Return the URL of database 0 behind TLS."""
        return f"{scheme}://127.0.0.1:{self._ports_by_name[front]}/0"

    def set_user(self, name: str, password: str, rules: str) -> None:
        """Make a user anew, with these rules and no others."""
        with self.client() as client:
            client.execute_command(
                "ACL", "SETUSER", name, "reset", "on", f">{password}", *rules.split()
            )
