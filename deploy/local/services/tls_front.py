"""TLS in front of a service that has none: decrypts and passes on.

Owns a thread with an event loop, the listening port and every connection through it. The Valkey of
PyPI is built without TLS; with this before it, clients see what a server with tls-port shows them.
Knows nothing of what is spoken. Used through `services`.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .certificates import Authority, Certificate
from .child import LOOPBACK, ServiceError, free_ports

PIECE = 64 * 1024
CALL_TIMEOUT_S = 10.0
PORT_ATTEMPTS = 5


class TlsFront:
    """Listens with a certificate and speaks plainly to `target`; a context manager."""

    def __init__(self, target: str, shown: Certificate, clients: Authority | None = None) -> None:
        """Prepare a front for "host:port"; with `clients` it demands a certificate they signed."""
        self.target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(shown.cert, shown.key)
        if clients is not None:
            self._context.load_verify_locations(Path(clients.file))
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def address(self) -> str:
        """Return `host:port` for clients."""
        return f"{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        """Listen on a free port."""
        self._loop.set_exception_handler(lambda loop, what: None)  # clients that do not get in
        self._thread.start()
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = free_ports(1)[0]
            try:
                self._call(self._listen())
                break
            except OSError as error:  # taken since it was found free
                if attempt == PORT_ATTEMPTS:
                    self.__exit__(None, None, None)
                    raise ServiceError(f"tls: no port to listen on: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop everything and end the thread."""
        self._call(self._drop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    def _call(self, doing: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(doing, self._loop).result(CALL_TIMEOUT_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, LOOPBACK, self.port, ssl=self._context
        )

    async def _drop(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = {task for task in (asyncio.current_task(),) if task is not None}
        self._tasks |= mine
        host, _, port = self.target.rpartition(":")
        writers = [writer]
        try:
            back_reader, back_writer = await asyncio.open_connection(host, int(port))
            writers.append(back_writer)
            await asyncio.gather(_pump(reader, back_writer), _pump(back_reader, writer))
        except OSError:
            pass  # nobody behind us: the client is hung up on
        finally:
            for one in writers:
                one.transport.abort()
            self._tasks -= mine


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    with suppress(OSError, RuntimeError):
        writer.close()
