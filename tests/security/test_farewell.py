"""A worker told to stop ends at once, though TLS would like to say goodbye to the broker first."""

from __future__ import annotations

import time

from live_worker import make_events
from secured_serving import SecuredServing

SOON_S = 8.0  # it was 30; a stop takes about 1.1


def test_a_worker_on_tls_that_is_told_to_stop_does_so_at_once(secured: SecuredServing) -> None:
    secured.allow("keyfold-worker")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serving.send(make_events(50, 10))
    worker = secured.worker()
    secured.serving.wait_saved([worker])
    begin = time.monotonic()
    worker.stop()
    assert worker.exit_code == 0, worker.log_tail()
    assert time.monotonic() - begin < SOON_S
