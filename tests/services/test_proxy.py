"""The proxy between a worker and a service: slow, silent and cut connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from local.services import Proxy, ServiceError, accepts_connections

WAIT_S = 10.0
PAUSE_S = 0.2  # how long silence is listened to


class Echo:
    """A server that answers every piece with itself, and counts what came in."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.received = b""
        self.came = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while piece := connection.recv(65536):
                    self.received += piece
                    self.came.set()
                    connection.sendall(piece)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as between:
        yield between


def client(proxy: Proxy) -> closing[socket.socket]:
    return closing(socket.create_connection(("127.0.0.1", proxy.port), WAIT_S))


def said(connection: socket.socket, text: bytes) -> bytes:
    """Send and return what comes back; b"" when nothing does for a moment."""
    connection.sendall(text)
    return heard(connection)


def heard(connection: socket.socket, wait_s: float = WAIT_S) -> bytes:
    connection.settimeout(wait_s)
    return connection.recv(65536)


def is_dropped(connection: socket.socket) -> bool:
    """Tell whether the other side ended the connection, in whichever way."""
    try:
        return heard(connection) == b""
    except ConnectionResetError:
        return True


def test_what_is_sent_and_answered_passes(proxy: Proxy) -> None:
    with client(proxy) as connection:
        assert said(connection, b"one") == b"one"
        large = b"x" * 3_000_000
        threading.Thread(target=connection.sendall, args=(large,), daemon=True).start()
        got = 0
        while got < len(large):
            got += len(heard(connection))
        assert proxy.connections == 1


def test_a_slow_link_delays_both_ways(proxy: Proxy) -> None:
    with client(proxy) as connection:
        proxy.slow(0.15)
        begun = time.monotonic()
        assert said(connection, b"one") == b"one"
        assert time.monotonic() - begun >= 0.3
        proxy.heal()
        assert said(connection, b"two") == b"two"


def test_a_stalled_link_passes_nothing_and_goes_on_with_what_it_held(
    proxy: Proxy, echo: Echo
) -> None:
    with client(proxy) as connection:
        assert said(connection, b"one") == b"one"
        proxy.stall()
        connection.sendall(b"two")
        with pytest.raises(TimeoutError):
            heard(connection, PAUSE_S)
        assert echo.received == b"one"
        proxy.heal()
        assert heard(connection) == b"two"


def test_replies_can_be_lost_of_requests_that_were_carried_out(proxy: Proxy, echo: Echo) -> None:
    with client(proxy) as connection:
        proxy.stall("replies")
        connection.sendall(b"one")
        assert echo.came.wait(WAIT_S)
        with pytest.raises(TimeoutError):
            heard(connection, PAUSE_S)
        proxy.drop()
        assert is_dropped(connection)
        assert echo.received == b"one"


def test_a_cut_link_drops_connections_and_refuses_new_ones_until_it_is_healed(
    proxy: Proxy,
) -> None:
    with client(proxy) as connection:
        assert said(connection, b"one") == b"one"
        proxy.cut()
        assert is_dropped(connection)
    assert not accepts_connections(proxy.port)
    port = proxy.port
    proxy.heal()
    assert proxy.port == port
    with client(proxy) as connection:
        assert said(connection, b"two") == b"two"


def test_dropped_connections_may_come_back_at_once(proxy: Proxy) -> None:
    with client(proxy) as connection:
        assert said(connection, b"one") == b"one"
        proxy.drop()
        assert is_dropped(connection)
    with client(proxy) as connection:
        assert said(connection, b"two") == b"two"


def test_a_service_that_is_gone_shows_through_the_proxy(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    with client(proxy) as connection:
        assert is_dropped(connection)


def test_a_closed_proxy_leaves_no_thread_and_no_port(echo: Echo) -> None:
    before = set(threading.enumerate())
    with Proxy(echo.address) as proxy, client(proxy) as connection:
        assert said(connection, b"one") == b"one"
        port = proxy.port
        proxy.stall()
    assert not accepts_connections(port)
    assert not [t for t in set(threading.enumerate()) - before if t.name == "proxy"]
    with pytest.raises(ServiceError, match="not running"):
        proxy.cut()
