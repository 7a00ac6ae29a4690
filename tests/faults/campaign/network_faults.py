"""Faults of the network between workers and one service: slow, silent or cut.

Each is a function of the stage and the planned fault. Used through faults.py.
"""

from __future__ import annotations

from collections.abc import Callable

from campaign.schedule import Fault
from campaign.stage import Stage
from local.services import Proxy

DELAYS_S = (0.02, 0.1, 0.3)


def network_fault(stage: Stage, fault: Fault) -> None:
    """Do to the service's proxies what the fault's name says, and heal them later."""
    service, _, what = fault.kind.partition("-")
    proxies = _proxies(stage, service)
    do: dict[str, Callable[[Proxy], None]] = {
        "slow": lambda proxy: proxy.slow(delay_s),
        "stall": Proxy.stall,
        "cut": Proxy.cut,
    }
    delay_s = stage.random.choice(DELAYS_S)
    if service == "kafka" and what != "slow" and stage.random.random() < 0.5:
        proxies = proxies[fault.partition % len(proxies) :][:1]  # one broker only
    for proxy in proxies:
        do[what](proxy)
    stage.struck(fault, detail=f"{delay_s} s" if what == "slow" else f"{len(proxies)} links")

    def heal() -> None:
        for proxy in proxies:
            proxy.heal()

    stage.later(fault.lasts_s, heal)


def _proxies(stage: Stage, service: str) -> list[Proxy]:
    if service == "kafka":
        return list(stage.scene.kafka.network())
    proxy = stage.scene.store.network()
    return [proxy] if proxy is not None else []
