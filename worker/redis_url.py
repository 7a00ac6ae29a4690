"""The forms of redis.url: one server, a primary found through Sentinels, or a cluster.

Owns what a URL says and that its password is never shown. Opens nothing. Called by
worker/redis_client.py, worker/config.py and whoever puts a URL into a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

FORMS = {
    "redis": "redis://[user:password@]host[:port][/db]",
    "unix": "unix://[user:password@]/path/of/socket[?db=N]",
    "sentinel": "redis+sentinel://[user:password@]host[:port],.../service[/db]",
    "cluster": "redis+cluster://[user:password@]host[:port],...",
}
SENTINEL_PORT = 26379
PORT = 6379


@dataclass(frozen=True, slots=True)
class Place:
    """What a redis.url says."""

    kind: Literal["server", "sentinel", "cluster"]  # how the server is found
    hosts: tuple[tuple[str, int], ...]  # Sentinels or cluster nodes to ask; none for a server
    service: str  # name that the Sentinels know the primary by, else ""
    scheme: str  # of the servers themselves: redis, or rediss (TLS)
    login: str  # "user:password@" as it stands in the URL, or ""
    database: str  # number, or ""
    options: str  # query string for redis-py's from_url, or ""

    def of(self, host: str, port: int, *, login: bool = True) -> str:
        """Return the URL of one server that this place led to."""
        name = f"[{host}]" if ":" in host else host
        return self._url(f"{self.login if login else ''}{name}:{port}", f"/{self.database}")

    def sentinel(self, host: str, port: int, *, login: bool) -> str:
        """Return the URL of a Sentinel, which has no databases."""
        name = f"[{host}]" if ":" in host else host
        return self._url(f"{self.login if login else ''}{name}:{port}", "")

    def _url(self, where: str, path: str) -> str:
        return f"{self.scheme}://{where}{path}{self.options and '?' + self.options}"


def parse_url(url: str) -> Place:
    """Read a redis.url. Raises ValueError, without the password, when it is none."""
    problem = problem_with_url(url)
    if problem:
        raise ValueError(problem)
    parts = urlsplit(url)
    tls, _, kind = parts.scheme.partition("+")
    login, at, hosts = parts.netloc.rpartition("@")
    if not kind:
        return Place("server", (), "", tls, login + at, "", parts.query)
    if kind == "cluster":
        return Place("cluster", _hosts(hosts, PORT), "", tls, login + at, "0", parts.query)
    service, _, database = parts.path.strip("/").partition("/")
    found = _hosts(hosts, SENTINEL_PORT)
    return Place("sentinel", found, service, tls, login + at, database or "0", parts.query)


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
