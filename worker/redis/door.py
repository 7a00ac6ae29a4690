"""Knocks at a Redis: does it speak TLS or not, as its URL says, and with a certificate we trust?

Owns the first words (TCP, TLS, PING) and the lines for what is wrong with them, because redis-py's
errors do not tell, or come late: a client that speaks TLS to a server without it waits in silence.
Nobody logs in. Called by client.py before a command's first connection, and by refusals.py.
"""

from __future__ import annotations

import socket
import ssl

from keyfold.export.connection import client_context
from keyfold.export.refusals import EXPIRED, OTHER_HOST, TOO_EARLY
from keyfold.worker.redis.url import Access, parse_url

KNOCK_S = 3.0  # at one server
NOT_SO_OLD = "TLSV1_ALERT_PROTOCOL_VERSION"


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


def _tls(access: Access, plain: socket.socket, host: str, port: int) -> str | None:
    context = client_context(access.ca_file, access.cert_file, access.key_file, access.key_password)
    try:
        with context.wrap_socket(plain, server_hostname=host) as stream:
            stream.sendall(b"PING\r\n")
            if stream.recv(1):
                return None
        # In TLS 1.2 the handshake itself fails for want of a certificate; in TLS 1.3 what follows
        # does, and so it does at a front whose server is away.
        if _failure_of_tls(host, port, ssl.TLSVersion.TLSv1_2) in ("", NOT_SO_OLD):
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
        if "alert" not in alert:
            return None
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
    # Who hangs up may be a proxy whose server is away, or a Redis that is killed just then.
    if said in (b"+", b"-"):
        return None
    failure = _failure_of_tls(host, port)
    if failure and "ALERT" not in failure:  # an alert is a "no" in the words of TLS
        return None
    return (
        f"redis.url: {host}:{port} hangs up on a client without TLS: expected rediss://, and "
        "redis.ca_file with the PEM of who signed its certificate"
    )


def _failure_of_tls(
    host: str, port: int, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
) -> str:
    """Try a handshake and send nothing; return OpenSSL's name of what is wrong, "": nothing."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    try:
        with (
            socket.create_connection((host, port), timeout=KNOCK_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLError as error:
        return error.reason or "UNKNOWN"


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
