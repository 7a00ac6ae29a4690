"""The services of one campaign: a Kafka cluster and the Redis variants, reused by all schedules.

Owns starting each once, when it is first wanted, and ending them all. Knows nothing of schedules.
Used by __main__.py and the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from campaign.brokers import Brokers
from campaign.schedule import Allowed
from campaign.stores import ClusterStore, PlainStore, ReplicatedStore, StoreVariant

STORES: dict[str, Callable[[], StoreVariant]] = {
    "plain": PlainStore,
    "replicated": ReplicatedStore,
    "cluster": ClusterStore,
}


class Services:
    """Everything that schedules share; a context manager."""

    def __init__(self, brokers: int = 3) -> None:
        """Prepare; Kafka is to have so many brokers."""
        self._count = brokers
        self._kafka: Brokers | None = None
        self._stores: dict[str, StoreVariant] = {}
        self._stack = ExitStack()

    @property
    def kafka(self) -> Brokers:
        """Return the brokers, starting them if need be."""
        if self._kafka is None:
            self._kafka = Brokers(self._count)
            self._stack.callback(self._kafka.close)
        return self._kafka

    def store(self, name: str) -> StoreVariant:
        """Return a Redis variant, starting it if need be."""
        if name not in self._stores:
            self._stores[name] = STORES[name]()
            self._stack.callback(self._stores[name].close)
        return self._stores[name]

    def renew(self, name: str) -> None:
        """End a Redis variant that cannot be brought back; the next schedule gets another."""
        store = self._stores.pop(name, None)
        if store is not None:
            store.close()

    def allowed(self) -> Allowed:
        """Return what can be drawn here."""
        return Allowed(stores=tuple(STORES), brokers=self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
