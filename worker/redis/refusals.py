"""Why a Redis does not let us in, in one line that says which setting or ACL rule is wrong.

Owns the words for what redis-py raises, and a look at a server's door (TCP, TLS, PING) for what its
errors do not tell. No text shows a password. Called by worker/surroundings.py, worker/app.py and
the commands.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from keyfold.export.connection import client_context
from keyfold.export.refusals import EXPIRED, OTHER_HOST, TOO_EARLY
from keyfold.worker.errors import RedisRefuses
from keyfold.worker.redis.client import connect, primaries
from keyfold.worker.redis.url import Access, parse_url

KNOCK_S = 3.0  # at one server
# Redis' words for what an ACL forbids, also when a script of ours tries it.
NO_COMMAND = re.compile(r"no permissions to run the '([^']+)' command|can't run this command")
NAMED = re.compile(r"User (\S+) has no permissions")
NO_KEY = re.compile(r"no permissions to access (?:one of the keys|a key)|can't access.*key", re.I)


def why_denied(error: Exception, access: Access | None = None) -> str | None:
    """Return the line for an error of the login or of the ACL; None: it is none of these."""
    text = str(error)
    named = NAMED.search(text)
    name = named.group(1) if named else access.user if access is not None else ""
    user = repr(name) if name else "this user"
    if isinstance(error, AuthenticationError) or text.startswith(("WRONGPASS", "NOAUTH")):
        if "NOAUTH" in text or "Authentication required" in text:
            return "redis.username, redis.password: Redis asks for a login: set both"
        return (
            f"redis.username, redis.password: Redis refuses {user}: expected the name and the "
            "password of one of its ACL users (or of redis.url)"
        )
    if access is not None and "by Sentinel" in text and "username-password" in text:
        return (
            "redis.sentinel_username, redis.sentinel_password: the Sentinels refuse us: expected "
            "the name and the password of one of their users"
        )
    if "cluster support disabled" in text or "command 'SENTINEL'" in text:
        return f"redis.url: Redis refuses: {text}"
    denied = isinstance(error, NoPermissionError) or "NOPERM" in text or "ACL failure" in text
    if not denied:
        return None
    command = NO_COMMAND.search(text)
    if command is not None and command.group(1):
        name = command.group(1).lower()
        return f"redis.username: Redis' ACL forbids {user} the command {name}: ACL SETUSER +{name}"
    if NO_KEY.search(text):
        return (
            f"redis.username: Redis' ACL forbids {user} the keys of this group: ACL SETUSER with "
            "~{GROUP:* and ~keyfold-handover:{INPUT:OUTPUT:* for kafka.group, kafka.input, output"
        )
    return f"redis.username: Redis' ACL forbids {user}: {text}"


def why_shut_out(access: Access) -> str | None:
    """Knock at the servers of a URL; return what is wrong with TLS, None: nothing that shows.

    Takes up to KNOCK_S each.
    """
    tls = access.url.partition("://")[0].startswith("rediss")
    for host, port in _doors(access):
        try:
            with socket.create_connection((host, port), timeout=KNOCK_S) as plain:
                found = _tls(access, plain, host, port) if tls else _plain(plain, host, port)
        except OSError:
            continue  # nobody there: that may pass
        return found
    return None


async def check_redis(access: Access, timeout_s: float) -> None:
    """Ask Redis once whether it lets us in; one that is away is waited for later.

    Raises RedisRefuses when a setting or an ACL has to be another one first.
    """
    client = connect(access, timeout_s)
    try:
        for server in await primaries(client):
            await server.info("memory")
    except (RedisError, OSError) as error:
        why = why_denied(error, access) or await asyncio.to_thread(why_shut_out, access)
        if why is not None:
            raise RedisRefuses(why) from error
    finally:
        await client.aclose()


def _tls(access: Access, plain: socket.socket, host: str, port: int) -> str | None:
    context = client_context(access.ca_file, access.cert_file, access.key_file, access.key_password)
    try:
        with context.wrap_socket(plain, server_hostname=host) as stream:
            stream.sendall(b"PING\r\n")
            if stream.recv(1):
                return None
            alert = "connection closed"
    except ssl.SSLCertVerificationError as error:
        return _certificate(error, access, f"{host}:{port}")
    except TimeoutError:
        # To a server without TLS our greeting is the beginning of a very long command.
        return _no_tls(host, port) if _speaks_plainly(host, port) else None
    except ssl.SSLError as error:
        alert = str(error.reason or "").lower().replace("_", " ")
        if "wrong version" in alert or "record layer" in alert:
            return _no_tls(host, port)
    return (
        f"redis.cert_file, redis.key_file: {host}:{port} ends the connection ({alert}): it seems "
        "to want a client's certificate, signed by an authority it knows"
    )


def _no_tls(host: str, port: int) -> str:
    return f"redis.url: {host}:{port} speaks no TLS: expected redis://, or its TLS port"


def _speaks_plainly(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=KNOCK_S) as plain:
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in (b"+", b"-")


def _plain(plain: socket.socket, host: str, port: int) -> str | None:
    try:
        plain.sendall(b"PING\r\n")
        said = plain.recv(1)
    except TimeoutError:
        return None
    except ConnectionError:
        said = b""
    if said in (b"+", b"-"):
        return None
    return (
        f"redis.url: {host}:{port} hangs up on a client without TLS: expected rediss://, and "
        "redis.ca_file with the PEM of who signed its certificate"
    )


def _certificate(error: ssl.SSLCertVerificationError, access: Access, where: str) -> str:
    if error.verify_code in (EXPIRED, TOO_EARLY):
        return (
            f"redis.url: the certificate of {where} is not valid now ({error.verify_message}): "
            "whoever runs Redis has to renew it (or this machine's clock is wrong)"
        )
    if error.verify_code in OTHER_HOST:
        return (
            f"redis.url: the certificate of {where} is for another host: expected a name that "
            "stands in it"
        )
    signer = "the system's authorities" if access.ca_file is None else str(access.ca_file)
    return (
        f"redis.ca_file: {where} shows a certificate that {signer} did not sign "
        f"({error.verify_message}): expected the PEM of the authority that did"
    )


def _doors(access: Access) -> list[tuple[str, int]]:
    place = parse_url(access)
    if place.kind != "server":
        return list(place.hosts)
    return [place.door] if place.door else []


def explain(error: RedisError | OSError, access: Access) -> str:
    """Return the best line for an error of a command that looked once."""
    denied = why_denied(error, access)
    if denied is not None:
        return denied
    return why_shut_out(access) or f"Redis at {access}: {error}"
