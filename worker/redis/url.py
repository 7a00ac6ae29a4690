"""The forms of redis.url: one server, a primary found through Sentinels, or a cluster.

Owns what a URL and the settings beside it say (user, TLS) and that no password is ever shown.
Opens nothing. Called by client.py, worker/config.py and whoever puts a URL into a
message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from keyfold.export.connection import check_files

FORMS = {
    "redis": "redis://[user:password@]host[:port][/db]",
    "unix": "unix://[user:password@]/path/of/socket[?db=N]",
    "sentinel": "redis+sentinel://[user:password@]host[:port],.../service[/db]",
    "cluster": "redis+cluster://[user:password@]host[:port],...",
}
SENTINEL_PORT = 26379
PORT = 6379


@dataclass(frozen=True, slots=True)
class Access:
    """How Redis is reached: its URL and what stands beside it in [redis]; shown without secrets."""

    url: str = field(repr=False)  # in one of FORMS
    username: str = ""  # ACL user; "": the one of the URL, or "default"
    password: str = field(default="", repr=False)  # of that user
    sentinel_username: str = ""  # of the Sentinels; "": none, then that of the servers
    sentinel_password: str = field(default="", repr=False)  # of the Sentinels
    ca_file: Path | None = None  # TLS: PEM of who signed the servers; None: the system's
    cert_file: Path | None = None  # TLS: PEM of our certificate
    key_file: Path | None = None  # TLS: PEM of its private key
    key_password: str = field(default="", repr=False)  # of an encrypted key

    def __post_init__(self) -> None:
        problem = problem_with_url(self.url)  # which never shows it: it may hold a password
        if problem is not None:
            raise ValueError(f"url: {problem}")
        parts = urlsplit(self.url)
        if self.username and not self.password:
            raise ValueError("password: expected one beside username")
        if self.password and "@" in parts.netloc:
            raise ValueError("password: expected it here or in redis.url, not in both")
        if self.sentinel_username and not self.sentinel_password:
            raise ValueError("sentinel_password: expected one beside sentinel_username")
        if self.sentinel_password and "sentinel" not in parts.scheme:
            raise ValueError("sentinel_password: expected none without redis+sentinel://")
        tls = parts.scheme.startswith("rediss")
        for name in ("ca_file", "cert_file", "key_file", "key_password"):
            if getattr(self, name) and not tls:
                raise ValueError(f"{name}: expected none without TLS: redis.url begins with rediss")
        if tls:
            check_files(self.ca_file, self.cert_file, self.key_file, self.key_password)

    def __str__(self) -> str:
        return without_password(self.url)

    @classmethod
    def of(cls, redis: Access | str) -> Access:
        """Return how Redis is reached; a URL alone says all there is. Raises ValueError."""
        return redis if isinstance(redis, Access) else cls(redis)

    @property
    def whole_url(self) -> str:
        """The URL with user and password in it."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=self._login + parts.netloc))

    @property
    def user(self) -> str:
        """The ACL user, "" where none is named."""
        return self.username or unquote(urlsplit(self.url).username or "")

    @property
    def sentinel_login(self) -> str | None:
        """The Sentinels' own "user:password@", None: they have no other one than the servers."""
        return _login(self.sentinel_username, self.sentinel_password) or None

    @property
    def tls(self) -> dict[str, Any]:
        """What redis-py wants to know about TLS, nothing without it."""
        if not urlsplit(self.url).scheme.startswith("rediss"):
            return {}
        given = {
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
        }
        found: dict[str, Any] = {name: str(file) for name, file in given.items() if file}
        if self.cert_file is not None:
            # Never None: OpenSSL would ask at the terminal for an encrypted key's password.
            found["ssl_password"] = self.key_password
        return {**found, "ssl_check_hostname": True}

    @property
    def _login(self) -> str:
        return _login(self.username, self.password)


def _login(username: str, password: str) -> str:
    return f"{quote(username, safe='')}:{quote(password, safe='')}@" if password else ""


@dataclass(frozen=True, slots=True)
class Place:
    """What a redis.url says."""

    kind: Literal["server", "sentinel", "cluster"]  # how the server is found
    hosts: tuple[tuple[str, int], ...]  # Sentinels or cluster nodes to ask; none for a server
    service: str  # name that the Sentinels know the primary by, else ""
    scheme: str  # of the servers themselves: redis, or rediss (TLS)
    login: str = field(repr=False)  # "user:password@" as it stands in the URL, or ""
    database: str  # number, or ""
    options: str = field(repr=False)  # query string for redis-py's from_url, or ""
    sentinel_login: str | None = field(default=None, repr=False)  # None: none, then the servers'
    door: tuple[str, int] | None = None  # host and port of a server; None: a socket, or found

    def of(self, host: str, port: int, *, login: bool = True) -> str:
        """Return the URL of one server that this place led to."""
        name = f"[{host}]" if ":" in host else host
        return self._url(f"{self.login if login else ''}{name}:{port}", f"/{self.database}")

    @property
    def sentinel_logins(self) -> list[str]:
        """The logins to be tried at a Sentinel, in this order."""
        if self.sentinel_login is not None:
            return [self.sentinel_login]
        # With the servers' login only where a Sentinel asks for one.
        return ["", self.login] if self.login else [""]

    def sentinel(self, host: str, port: int, login: str) -> str:
        """Return the URL of a Sentinel, which has no databases."""
        name = f"[{host}]" if ":" in host else host
        return self._url(f"{login}{name}:{port}", "")

    def _url(self, where: str, path: str) -> str:
        return f"{self.scheme}://{where}{path}{self.options and '?' + self.options}"


def parse_url(redis: Access | str) -> Place:
    """Read a redis.url. Raises ValueError, without the password, when it is none."""
    if isinstance(redis, str):
        problem = problem_with_url(redis)
        if problem:
            raise ValueError(problem)
    access = Access.of(redis)
    url = access.whole_url
    parts = urlsplit(url)
    tls, _, kind = parts.scheme.partition("+")
    login, at, hosts = parts.netloc.rpartition("@")
    if not kind:
        door = (parts.hostname, parts.port or PORT) if parts.hostname and tls != "unix" else None
        return Place("server", (), "", tls, login + at, "", parts.query, None, door)
    if kind == "cluster":
        return Place("cluster", _hosts(hosts, PORT), "", tls, login + at, "0", parts.query)
    service, _, database = parts.path.strip("/").partition("/")
    found = _hosts(hosts, SENTINEL_PORT)
    return Place("sentinel", found, service, tls, login + at, database or "0", parts.query,
                 access.sentinel_login)  # fmt: skip


def problem_with_url(url: str) -> str | None:
    """Return what is wrong with a redis.url, None: nothing. Never shows the URL itself."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that do not match
        return f"expected {FORMS['redis']}"
    checks = {
        "redis": (_is_server, "redis"),
        "rediss": (_is_server, "redis"),
        "unix": (lambda unix: bool(unix.path), "unix"),
        "redis+sentinel": (_is_sentinel, "sentinel"),
        "rediss+sentinel": (_is_sentinel, "sentinel"),
        "redis+cluster": (_is_cluster, "cluster"),
        "rediss+cluster": (_is_cluster, "cluster"),
    }
    if parts.scheme not in checks:
        return f"expected {', '.join(FORMS.values())}"
    check, form = checks[parts.scheme]
    try:
        return None if check(parts) else f"expected {FORMS[form]}"
    except ValueError:  # a port that is no number
        return f"expected {FORMS[form]}"


def without_password(url: str) -> str:
    """Return a URL that can be shown: without user and password, and without options."""
    scheme, separator, rest = url.partition("://")
    where = rest.rpartition("@")[2]
    return f"{scheme}{separator}{where.partition('?')[0]}" if separator else "(not a URL)"


def _is_server(parts: SplitResult) -> bool:
    has_port = parts.port is None or parts.port > 0
    return bool(parts.hostname) and has_port and _is_database(parts.path.strip("/"))


def _is_sentinel(parts: SplitResult) -> bool:
    service, _, database = parts.path.strip("/").partition("/")
    return bool(_hosts_of(parts, SENTINEL_PORT) and service) and _is_database(database)


def _is_cluster(parts: SplitResult) -> bool:
    return bool(_hosts_of(parts, PORT)) and parts.path.strip("/") in ("", "0")


def _is_database(text: str) -> bool:
    return text.isdigit() or not text


def _hosts_of(parts: SplitResult, default_port: int) -> tuple[tuple[str, int], ...]:
    return _hosts(parts.netloc.rpartition("@")[2], default_port)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    """Read "host[:port],host[:port]". Raises ValueError on a name or number that is none."""
    found = []
    for one in text.split(","):
        parts = urlsplit(f"//{one.strip()}")
        if not parts.hostname or parts.port == 0 or parts.path:
            raise ValueError("host")
        found.append((parts.hostname, parts.port or default_port))
    return tuple(found)
