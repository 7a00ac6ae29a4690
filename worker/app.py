"""The Faust app of a worker: puts the parts together and nothing else.

Owns the wiring: settings -> Faust's configuration, bundle -> model, and the one pipeline task. Your
own agents may be added to the app; they run beside the pipeline on topics of their own. Called by
worker/cli.py, and by whoever embeds a worker in a Faust project (`create_app`).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import faust
from faust.app.base import BootStrategy
from faust.auth import SASLCredentials, SSLCredentials

from keyfold.worker import native
from keyfold.worker.beginning import HANDOVER
from keyfold.worker.config import Config, SettingsError
from keyfold.worker.consumer_thread import ASK_S, faust_log
from keyfold.worker.emission import Emission, joined
from keyfold.worker.emit import Destination, Emitter
from keyfold.worker.errors import Crash, SetUpError
from keyfold.worker.fetched import MAX_ITEMS
from keyfold.worker.intake import MAX_FETCH_RECORDS, Transport
from keyfold.worker.kafka.rights import named_refusal
from keyfold.worker.liveness import health
from keyfold.worker.liveness.watchdog import Watchdog, Watched, reading
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.owner import Owner
from keyfold.worker.partition import Partition, Rules
from keyfold.worker.pipeline import Pipeline, Shown
from keyfold.worker.redis.first_answer import FirstAnswer
from keyfold.worker.slots import Slots
from keyfold.worker.state_codec import StateCodec, WritingStateCodec
from keyfold.worker.store import STATE_PREFIX, Store
from keyfold.worker.surroundings import Settings, Surroundings
from keyfold.worker.transactions import Transactions

log = logging.getLogger(__name__)

STUCK_S = 10.0  # a crash that has not ended the program by then ends it hard
HOPELESS_S = 3.0  # the same, for a crash that a person must set right first: nothing is drained
EX_CRASH = 70  # EX_SOFTWARE of sysexits.h
EX_USAGE = 2  # what worker/cli.py ends with for the same


class Boot(BootStrategy):
    """Faust's order of starting, with Redis' first answer between the pages and the consumer."""

    def kafka_consumer(self) -> Any:
        """Return what is started for consuming: nothing joins before the first of these has."""
        return [self.app.first_answer, *super().kafka_consumer()]


class App(faust.App):
    """A Faust app whose input topic is served by the pipeline."""

    logger = faust_log
    BootStrategy = Boot

    def __init__(self, config: Config, settings_file: str = "worker.toml", **options: Any) -> None:
        self.config, self._settings_file = config, settings_file
        self.input_topic = config.kafka.input
        self.failure: BaseException | None = None  # what a crash was about
        self.native = _is_native(config.worker.native)
        most = MAX_ITEMS if self.native else MAX_FETCH_RECORDS
        super().__init__(config.kafka.group, **_faust_options(config, most), **options)
        self.model = Model.load(config.worker.bundle)
        manifest = self.model.bundle.manifest
        self.metrics = Metrics()
        rule = Emission.of(config.emit, manifest.outputs)
        more = () if rule is None else rule.states
        self.slots = Slots(manifest, more)
        redis = config.redis
        exactly_once = config.worker.exactly_once
        self.store = Store.connect(redis.access, redis.timeout_s, config.kafka.group, exactly_once)
        self.pipeline = Pipeline(
            self.model, self.slots, self.store, self.metrics,
            Shown(config.kafka.input, config.worker.passthrough, rule, self.native),
        )  # fmt: skip
        self.watchdog = Watchdog(
            Watched(
                config.connection, config.kafka.input, config.kafka.group,
                config.worker.stuck_after_s or float("inf"),
            ),
            lambda: [reading(owner) for owner in self.owners()],
            partial(os._exit, EX_CRASH),
        )  # fmt: skip
        self.first_answer = FirstAnswer(
            self.store.policy_problems, (str(redis.access), config.kafka.group), self.fail,
            loop=self.loop, beacon=self.beacon,
        )  # fmt: skip
        self._nonce = uuid.uuid4().hex
        self._codec = (
            WritingStateCodec(manifest, more, prefix=STATE_PREFIX)
            if self.native
            else StateCodec(manifest, more)
        )
        self._identity = joined(self.model.bundle, rule)
        destination = Destination(
            config.kafka.input, config.kafka.output, config.kafka.dead_letter,
            self.model.bundle.id, config.emit.alert_topic,
            self.native and config.kafka.compression == "none",
        )  # fmt: skip
        self._emitter = (
            Transactions(config.kafka, destination, config.connection)
            if exactly_once
            else Emitter(lambda: self.producer.connected(), destination)
        )
        # Faust subscribes to topics it knows; no channel of this one ever delivers.
        self.topics.add(self.topic(self.input_topic))

    def _create_directories(self) -> None:
        """Leave no folder behind: Faust's are for tables, which live in memory here."""

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Transport:
        return Transport(self.conf.broker_producer, self)

    def agent(self, channel: Any = None, **options: Any) -> Any:
        """Decorate an agent as Faust does; refuse the pipeline's own topic."""
        names = [channel] if isinstance(channel, str) else getattr(channel, "topics", None) or []
        if self.input_topic in names:
            raise SettingsError(
                f"@app.agent({self.input_topic!r}): expected another topic: the pipeline serves "
                "this one; let the agent read the output topic instead"
            )
        return super().agent(channel, **options)

    def new_owner(self, number: int) -> Owner:
        """Return the owner of a partition just assigned."""
        kafka, worker = self.config.kafka, self.config.worker
        shared = Surroundings(
            self.store, self.slots, self._codec, self._emitter, self.consumer, self.metrics,
            Settings(
                kafka.output, kafka.dead_letter, worker.start, worker.save_every_ms / 1000,
                self._nonce, self._identity,
                self.model.bundle.manifest.collects_after_ms,
                max(kafka.session_timeout_s, 3 * ASK_S, 2 * self.config.redis.timeout_s),
                worker.emit_from, self.config.emit.alert_topic,
            ),
            self._wake, self.fail,
        )  # fmt: skip
        rules = Rules(
            worker.exactly_once,
            worker.on_bundle_change,
            worker.on_lost_range == "mark-and-continue",
            worker.emit_from == HANDOVER,
        )
        return Owner(
            Partition(kafka.input, number, kafka.group, self._settings_file, rules), shared
        )

    @property
    def joined(self) -> bool:
        """Whether the group has given this worker its partitions, be it none."""
        return bool(self.tables.recovery.completed.is_set() and not self.rebalancing)

    def owners(self) -> list[Owner]:
        """Return the owners of this worker's partitions."""
        consumer = self._consumer
        return list(consumer.owners.values()) if consumer is not None else []

    @property
    def waits_to_join(self) -> str:
        """Why this worker has not asked the group for partitions yet, "" when it has."""
        return self.first_answer.waits_because

    async def on_started(self) -> None:
        """Begin to serve, unless the worker was stopped before it joined."""
        if not self.should_stop:
            await super().on_started()

    def fail(self, error: BaseException) -> None:
        """Stop the whole worker: fail-stop, nothing unsaved counts."""
        if self.failure is not None:
            return
        error = self.failure = named_refusal(
            error, self.config.kafka, self.config.connection, self.config.emit.alert_topic
        )
        log.critical("worker stops: %s: %s", type(error).__name__, error)
        loop = asyncio.get_running_loop()
        self._crashing = loop.create_task(self.crash(error))
        # Faust's shutdown can hang on a broker that is gone; what matters is that we stop.
        loop.call_later(HOPELESS_S if isinstance(error, SetUpError) else STUCK_S, _leave, error)

    def _wake(self) -> None:
        self.pipeline.wake()
        if self._consumer is not None:
            self._consumer.note_space()


def _is_native(wanted: str) -> bool:
    """Say whether the native module is used. Raises SetUpError: it must be."""
    if wanted == "on" and not native.available():
        raise SetUpError(
            f"worker.native: expected the native module, got none: {native.missing()} (a C++ "
            'compiler when keyfold is installed builds it; "auto" goes on without it)'
        )
    return native.available() and wanted != "off"


def _tell_codec(app: App) -> None:
    """Say in the log who decodes and encodes."""
    used = "native module" if app.native else "pure Python"
    if app.config.worker.native == "auto" and native.broken():
        why = native.missing()
        log.warning("decoding and encoding: %s; the native module is there, but %s", used, why)
    else:
        log.info("decoding and encoding: %s", used)


def _leave(error: BaseException) -> None:
    log.critical("worker did not stop by itself after its crash: leaving at once")
    print(f"keyfold-worker: {error}", file=sys.stderr, flush=True)
    os._exit(EX_USAGE if isinstance(error, SetUpError) else EX_CRASH)


def create_app(config: Config, settings_file: str = "worker.toml") -> App:
    """Build the app: load and prove the bundle, wire the parts, let the configured agents in.

    `settings_file` stands in messages that name an operator's command. Raises BundleError,
    SettingsError.
    """
    app = App(config, settings_file)
    worker = config.worker

    @app.task
    async def pipeline(app: App) -> None:
        log.info(
            "bundle %s: golden sequences differ by at most %.2g",
            app.model.bundle.id, app.model.golden_difference,
        )  # fmt: skip
        _tell_codec(app)
        try:
            await app.pipeline.run(app.owners, worker.max_events, worker.max_resident_keys)
        except Crash as error:
            app.fail(error)
        except Exception as error:
            log.exception("pipeline")
            app.fail(error)

    if worker.metrics_every_s:

        @app.timer(worker.metrics_every_s)
        async def report(app: App) -> None:
            owners = app.owners()
            phases = " ".join(f"{o.partition.number}:{o.partition.phase.value}" for o in owners)
            lag = sum(owner.lag for owner in owners)
            log.info("%s", app.metrics.line(lag, len(app.slots), phases or "none"))

    @app.task
    async def watchdog(app: App) -> None:
        await app.watchdog.run()

    for path, answer in health.PAGES.items():
        _serve(app, path, answer)

    for name in worker.agents:
        _load(name)(app)
    return app


def _serve(app: App, path: str, answer: Callable[[App], health.Answer]) -> None:
    @app.page(path, name=f"keyfold{path}")
    async def page(page: Any, request: Any) -> Any:
        status, body = answer(app)
        return page.json(body, status=status)


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"worker.agents: {name!r}: expected package.module:function") from error


def _credentials(config: Config) -> Any:
    """Return how Faust is to reach Kafka: TLS, SASL or both; None: neither."""
    security, context = config.security, config.connection.ssl_context()
    if security.sasl:
        return SASLCredentials(
            username=security.username, password=security.password,
            ssl_context=context, mechanism=security.mechanism,
        )  # fmt: skip
    return None if context is None else SSLCredentials(context)


def _faust_options(config: Config, most: int) -> dict[str, Any]:
    kafka, worker = config.kafka, config.worker
    return {
        "broker": ";".join(f"kafka://{address}" for address in config.connection.addresses),
        "broker_credentials": _credentials(config),
        "store": "memory://",
        "autodiscover": False,
        "web_enabled": bool(worker.web_port),
        "web_bind": "127.0.0.1",
        "web_port": worker.web_port or 6066,
        "web_tables_enabled": False,  # /table serves data without authentication
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "table_standby_replicas": 0,  # else Faust's own assignor is used
        "consumer_auto_offset_reset": "earliest",  # of agents' topics; the input's is "none"
        "broker_session_timeout": kafka.session_timeout_s,
        "broker_heartbeat_interval": kafka.session_timeout_s / 4,
        "broker_request_timeout": kafka.request_timeout_s,
        "broker_max_poll_interval": 300.0,
        "broker_max_poll_records": most,  # of objects: a fetch left as bytes is one, or a few
        "broker_check_crcs": True,
        "consumer_max_fetch_size": 1 << 20,
        "producer_compression_type": None if kafka.compression == "none" else kafka.compression,
        "producer_linger_ms": 0,
        "stream_wait_empty": True,
        "worker_redirect_stdouts": False,
    }
