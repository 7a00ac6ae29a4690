"""Knocks at doors that are open and have no Redis behind them; a secured one's: tests/security."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from keyfold.worker.redis.door import why_shut_out
from keyfold.worker.redis.refusals import check_redis
from keyfold.worker.redis.url import Access
from local.services import Authority
from local.services.tls_front import TlsFront


@pytest.fixture
def door() -> Iterator[str]:
    """Accept at an address and hang up, as a balancer without a server does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_who_accepts_and_hangs_up_is_waited_for(door: str, scheme: str) -> None:
    place = Access(f"{scheme}://{door}/0")
    assert why_shut_out(place) is None
    asyncio.run(check_redis(place, 2.0))  # raises nothing: the first answer is waited for


def test_a_tls_front_without_its_server_is_waited_for_and_not_called_a_want_of_certificates(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "certificates")
    with TlsFront("127.0.0.1:1", authority.issue("front")) as front:
        place = Access(f"rediss://{front.address}/0", ca_file=authority.file)
        assert why_shut_out(place) is None
        asyncio.run(check_redis(place, 2.0))


def test_without_tls_a_front_of_tls_is_told_though_its_server_is_away(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    with TlsFront("127.0.0.1:1", authority.issue("front")) as front:
        assert why_shut_out(Access(f"redis://{front.address}/0")) == (
            f"redis.url: {front.address} hangs up on a client without TLS: expected rediss://, and "
            "redis.ca_file with the PEM of who signed its certificate"
        )
