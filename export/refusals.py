"""Why a broker does not let us in, in one line that says which setting is wrong.

Owns a look at the door in the first words of Kafka's protocol (TCP, TLS, ApiVersions,
SaslHandshake, SaslAuthenticate), because neither client library tells an expired certificate from
one of another host, nor TLS from none; and the words for what an administrator has to allow. Asked
when a client has failed, by training and the worker, and by `keyfold-worker check`. No text shows a
password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote
from typing import TypeVar

from keyfold.export.connection import Connection
from keyfold.export.errors import Crash

T = TypeVar("T")

HUNG_UP_S = 3.0  # a broker that starts, or a balancer without one, hangs up as well
PROBE_S = 5.0  # longest look at one broker
TRY_S = 1.0  # of one question, before we look whether it can be answered at all
API_VERSIONS, SASL_HANDSHAKE, SASL_AUTHENTICATE = 18, 17, 36
UNSUPPORTED_MECHANISM, ILLEGAL_SASL_STATE, REFUSED = 33, 34, 58  # Kafka's error codes
MAX_REPLY_BYTES = 1 << 20
EXPIRED, TOO_EARLY = 10, 9  # OpenSSL's verify codes
OTHER_HOST = (62, 64)  # of a name, of an IP address
OWN_CERTIFICATE = ("certificate required", "bad certificate", "unknown ca", "handshake failure")


class NotLetIn(Crash):
    """The brokers will refuse us until a setting, or an ACL, is another one."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the look at the door has found."""

    text: str  # setting: what is wrong and what to do
    patience_s: float = 0.0  # how long it may pass by itself: a broker that starts hangs up too


def ask(
    connection: Connection,
    question: Callable[[float], T],
    timeout_s: float,
    failures: tuple[type[Exception], ...],
) -> T:
    """Put a question with a time limit to a client until it is answered.

    Raises NotLetIn as soon as the brokers refuse us, Crash when there is no answer in time.
    """
    start = time.monotonic()
    deadline = start + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        begun = time.monotonic()
        try:
            return question(min(max(left_s, 0.1), TRY_S))
        except failures as error:
            refusal = why_refused(connection, max(min(PROBE_S, left_s), 0.5))
            if refusal is not None and time.monotonic() - start >= refusal.patience_s:
                raise NotLetIn(refusal.text) from error
            if time.monotonic() > deadline - TRY_S:
                why = f"no answer within {timeout_s:g} s" if refusal is None else refusal.text
                raise Crash(f"Kafka at {connection}: {why}") from error
            time.sleep(max(0.0, TRY_S / 4 - (time.monotonic() - begun)))


def why_refused(connection: Connection, timeout_s: float = PROBE_S) -> Refusal | None:
    """Knock at each broker until one answers; None: it would let us in.

    Takes up to `timeout_s` in all.
    """
    deadline = time.monotonic() + timeout_s
    away: list[str] = []
    for address in connection.addresses:
        host, _, port = address.rpartition(":")
        left_s = max(deadline - time.monotonic(), 0.2)
        try:
            plain = socket.create_connection((host.strip("[]"), int(port)), timeout=left_s)
        except OSError as error:
            away.append(f"{address}: {error.strerror or 'no answer'}")
            continue
        with plain:
            try:
                return _look(connection, plain, host.strip("[]"), address)
            except TimeoutError:
                away.append(f"{address}: connected, no answer")
            except OSError as error:
                away.append(f"{address}: {error.strerror or error}")
    return Refusal(f"nobody answers ({'; '.join(away)})", float("inf"))


def acl(connection: Connection, operation: str, kind: str, name: str) -> str:
    """Return the line for a missing right: operation "Read" on kind "topic" or "group"."""
    who = f"User:{connection.security.username or 'NAME'}"
    granted = f"--{kind} {quote(name)}"
    if kind == "transactional-id":  # one per partition, and Write brings Describe with it
        operation = "Write"
        granted = (
            f"--{kind} {quote(name.rpartition(':')[0] + ':')} --resource-pattern-type prefixed"
        )
    return (
        f"{kind} {name!r}: the brokers' ACLs lack {operation} for {who}; an administrator adds it: "
        f"kafka-acls.sh --bootstrap-server {connection.addresses[0]} --add "
        f"--allow-principal {quote(who)} --operation {operation} {granted}"
    )


def _look(connection: Connection, plain: socket.socket, host: str, address: str) -> Refusal | None:
    security = connection.security
    context = connection.ssl_context()
    stream = plain
    if context is not None:
        try:
            stream = context.wrap_socket(plain, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            return _certificate(error, connection, address)
        except TimeoutError:
            raise
        except (ssl.SSLError, ConnectionError) as error:
            return _no_tls(security.sasl, address, error)
    with stream:
        try:
            _call(stream, API_VERSIONS, 0, b"")
            words = _call(stream, SASL_HANDSHAKE, 1, _string(security.mechanism or "keyfold"))
        except ssl.SSLError as error:
            return _alert(error, address)
        except ConnectionError:
            if context is not None:
                return _alert(None, address)
            wanted = "sasl_ssl" if security.sasl else "ssl"
            return Refusal(
                f"security.protocol: {address} hangs up on {security.protocol!r}: it seems to want "
                f"TLS; set {wanted!r}, and ca_file to the PEM of who signed its certificate",
                HUNG_UP_S,
            )
        return _sasl(connection, stream, words, address)


def _sasl(
    connection: Connection, stream: socket.socket, words: bytes, address: str
) -> Refusal | None:
    security = connection.security
    (code,) = struct.unpack_from(">h", words)
    offered = _strings(words[2:])
    tls = "ssl" if security.tls else "plaintext"
    if code == ILLEGAL_SASL_STATE and not offered:
        if not security.sasl:
            return None
        return Refusal(
            f"security.protocol: {address} asks for no login (SASL): set {tls!r}, without "
            "mechanism, username and password, or another port",
        )
    if not security.sasl:
        return Refusal(
            f"security.protocol: {address} asks for a login: set 'sasl_{tls}' with a mechanism "
            f"({', '.join(offered)}), username and password",
        )
    if code == UNSUPPORTED_MECHANISM:
        return Refusal(
            f"security.mechanism: {address} offers {', '.join(offered) or 'none'}, "
            f"got {security.mechanism!r}",
        )
    try:
        said = _log_in(connection, stream)
    except ConnectionError:
        said = "it hung up"
    if not said:
        return None
    return Refusal(
        f"security.username, security.password: {address} refuses {security.username!r} by "
        f"{security.mechanism}: expected the name and password of a user that it knows for this "
        "mechanism",
    )


def _log_in(connection: Connection, stream: socket.socket) -> str:
    """Log in; return "" or what the broker says. The steps of SCRAM are those of RFC 5802."""
    user, password = connection.security.username, connection.security.password
    mechanism = connection.security.mechanism
    if mechanism == "PLAIN":
        return _authenticate(stream, f"\0{user}\0{password}".encode())[0]
    digest = "sha256" if mechanism.endswith("256") else "sha512"
    name = user.replace("=", "=3D").replace(",", "=2C")
    nonce = secrets.token_hex(16)
    bare = f"n={name},r={nonce}"
    said, reply = _authenticate(stream, f"n,,{bare}".encode())
    if said:
        return said
    given = dict(item.split("=", 1) for item in reply.decode().split(",") if "=" in item)
    salt, rounds = base64.b64decode(given["s"]), int(given["i"])
    salted = hashlib.pbkdf2_hmac(digest, password.encode(), salt, rounds)
    client_key = hmac.digest(salted, b"Client Key", digest)
    final = f"c=biws,r={given['r']}"
    signed = f"{bare},{reply.decode()},{final}".encode()
    signature = hmac.digest(hashlib.new(digest, client_key).digest(), signed, digest)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return _authenticate(stream, f"{final},p={base64.b64encode(proof).decode()}".encode())[0]


def _authenticate(stream: socket.socket, token: bytes) -> tuple[str, bytes]:
    reply = _call(stream, SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
    code, length = struct.unpack_from(">hh", reply)
    text, rest = reply[4 : 4 + max(length, 0)], reply[4 + max(length, 0) :]
    return (text.decode(errors="replace") or "refused") if code else "", rest[4:]


def _certificate(
    error: ssl.SSLCertVerificationError, connection: Connection, address: str
) -> Refusal:
    code, own = error.verify_code, connection.security.ca_file
    if code in (EXPIRED, TOO_EARLY):
        text = (
            f"{address}: its certificate is not valid now ({error.verify_message}): whoever runs "
            "the broker has to renew it (or this machine's clock is wrong)"
        )
    elif code in OTHER_HOST:
        text = (
            f"kafka.brokers: {address}: its certificate is for another host: expected a name that "
            "stands in the certificate"
        )
    else:
        signer = "the system's authorities" if own is None else str(own)
        text = (
            f"security.ca_file: {address} shows a certificate that {signer} did not sign "
            f"({error.verify_message}): expected the PEM of the authority that did"
        )
    return Refusal(text)


def _no_tls(sasl: bool, address: str, error: Exception) -> Refusal:
    reason = getattr(error, "reason", None) or "connection closed"
    alert = str(reason).lower().replace("_", " ")
    if any(word in alert for word in OWN_CERTIFICATE):
        return _alert(error, address)
    wanted = "sasl_plaintext" if sasl else "plaintext"
    return Refusal(
        f"security.protocol: {address} speaks no TLS ({alert}): set {wanted!r}, or the port of its "
        "TLS listener",
        0.0 if "wrong version" in alert else HUNG_UP_S,
    )


def _alert(error: Exception | None, address: str) -> Refusal:
    reason = str(getattr(error, "reason", None) or "connection closed").lower().replace("_", " ")
    return Refusal(
        f"security.cert_file, security.key_file: {address} ends the connection after TLS "
        f"({reason}): it seems to want a client's certificate, signed by an authority it knows",
        HUNG_UP_S if error is None else 0.0,
    )


def _call(stream: socket.socket, api: int, version: int, body: bytes) -> bytes:
    """Send one request and return the body of its reply. Raises OSError."""
    head = struct.pack(">hhi", api, version, 1) + _string("keyfold")
    stream.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
    (size,) = struct.unpack(">i", _read(stream, 4))
    if not 4 <= size <= MAX_REPLY_BYTES:
        raise ConnectionResetError("not Kafka")
    return _read(stream, size)[4:]


def _read(stream: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = stream.recv(count - len(found))
        if not piece:
            raise ConnectionResetError("closed")
        found += piece
    return found


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _strings(data: bytes) -> list[str]:
    (count,) = struct.unpack_from(">i", data)
    at, found = 4, []
    for _ in range(count):
        (size,) = struct.unpack_from(">h", data, at)
        found.append(data[at + 2 : at + 2 + size].decode())
        at += 2 + size
    return found
