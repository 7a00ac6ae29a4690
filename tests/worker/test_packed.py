"""Requests written by the native module: what aiokafka's own builder would have written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from keyfold.worker import native
from keyfold.worker.packed import packed

pytestmark = pytest.mark.skipif(
    not native.available(), reason="the native module is not there: no C++ compiler"
)

LIMIT = 900_000


def producer(transactional_id: str | None = None, *, idempotent: bool = True) -> Any:
    """Return as much of an aiokafka producer as is looked at."""
    transactions = SimpleNamespace(transactional_id=transactional_id) if idempotent else None
    return SimpleNamespace(_txn_manager=transactions)


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200)), min_size=1, max_size=30),
    st.booleans(),
    st.integers(0, 2**40),
    st.integers(0, 2**15 - 1),
    st.integers(0, 2**31 - 1),
)
def test_a_request_is_byte_for_byte_aiokafka_s(
    told: list[tuple[bytes, bytes]], transactional: bool, number: int, epoch: int, sequence: int
) -> None:
    keys, payloads = map(list, zip(*told, strict=True))
    of = producer("mine" if transactional else None)
    (request,) = packed(of, keys, payloads, 1_700_000_000_000, LIMIT)
    theirs = BatchBuilder(LIMIT, 0, is_transactional=transactional)
    for key, payload in told:
        theirs.append(timestamp=1_700_000_000_000, key=key, value=payload)
    for builder in (request, theirs):
        builder._set_producer_state(number, epoch, sequence)
        builder.close()
        assert builder.closed()
    assert bytes(request._build()) == bytes(theirs._build())
    assert (request.record_count(), request.size()) == (len(told), theirs.size())


def test_a_request_that_is_sent_again_keeps_its_bytes() -> None:
    (request,) = packed(producer(), [b"k"], [b"v"], 5, LIMIT)
    request._set_producer_state(1, 2, 3)
    assert bytes(request._build()) == bytes(request._build())


def test_without_idempotence_nobody_sets_a_producer() -> None:
    (request,) = packed(producer(idempotent=False), [b"k"], [b"v"], 5, LIMIT)
    theirs = BatchBuilder(LIMIT, 0, is_transactional=False)
    theirs.append(timestamp=5, key=b"k", value=b"v")
    assert bytes(request._build()) == bytes(theirs._build())


def test_requests_stay_below_the_limit_and_in_order() -> None:
    keys = [b"k%d" % i for i in range(1000)]
    requests = list(packed(producer(), keys, [b"v" * 100] * 1000, 5, 10_000))
    assert all(request.size() <= 10_000 for request in requests)
    assert sum(request.record_count() for request in requests) == 1000
    assert len(requests) > 10
