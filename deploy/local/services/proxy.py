"""A TCP proxy whose network can be made slow, cut or silent, for tests of what a worker survives.

Owns a thread with an event loop of its own, the listening port and every connection through it.
Knows nothing of what is spoken over them. Called by tests, and by kafka.py for a listener that
is advertised at the proxy's address.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from .child import LOOPBACK, ServiceError, free_ports

PIECE = 64 * 1024
CALL_TIMEOUT_S = 10.0
PORT_ATTEMPTS = 5

Direction = Literal["requests", "replies"]
T = TypeVar("T")


class Proxy:
    """A proxy in front of `target` ("host:port"); a context manager, or start() and close()."""

    def __init__(self, target: str = "") -> None:
        """Prepare a proxy; without `target`, point_at() must name one before a client comes."""
        self.target = target
        self._port = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link = _Link(lambda: self.target)

    @property
    def port(self) -> int:
        """Return the port that clients use; it stays the same over cut() and heal()."""
        if not self._port:
            raise ServiceError("the proxy has no port before its start")
        return self._port

    @property
    def address(self) -> str:
        """Return `host:port` for clients."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def connections(self) -> int:
        """Return how many clients are connected now."""
        return len(self._link.connections)

    def point_at(self, target: str) -> None:
        """Send connections that come from now on to another "host:port"."""
        self.target = target

    def start(self) -> Self:
        """Listen on a free port and pass everything on."""
        if self._thread is not None:
            return self
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._port = free_ports(1)[0]
            try:
                self._call(self._link.listen(self._port))
                break
            except OSError as error:  # taken since it was found free
                if attempt == PORT_ATTEMPTS:
                    self.close()
                    raise ServiceError(f"proxy: no port to listen on: {error}") from error
        return self

    def slow(self, delay_s: float) -> None:
        """Hold every piece (at most 64 KiB, either direction) for `delay_s` before it goes on."""
        self._link.delay_s = delay_s

    def stall(self, direction: Direction | None = None) -> None:
        """Keep connections open and pass nothing, in one direction or (None) in both.

        Pieces are kept for heal(). stall("replies") and then cut() loses the replies of requests
        that were carried out.
        """
        self._call(self._link.stall(("requests", "replies") if direction is None else (direction,)))

    def cut(self) -> None:
        """Drop all connections, with what was held back in them, and refuse new ones."""
        self._call(self._link.cut())

    def drop(self) -> None:
        """Drop the connections of this moment; new ones are let in."""
        self._call(self._link.drop())

    def heal(self) -> None:
        """Undo slow(), stall() and cut()."""
        self._call(self._link.heal(self.port))

    def close(self) -> None:
        """Drop everything and end the thread."""
        if self._thread is None or self._loop is None:
            return
        self._call(self._link.cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()
        self._thread = self._loop = None

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise ServiceError("the proxy is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)


class _Link:
    """The proxy's inside; all but `delay_s` belongs to the loop's thread."""

    def __init__(self, target: Callable[[], str]) -> None:
        self.delay_s = 0.0
        self.connections: set[asyncio.Task[None]] = set()
        self._target = target
        self._server: asyncio.Server | None = None
        self._open = {"requests": asyncio.Event(), "replies": asyncio.Event()}
        for gate in self._open.values():
            gate.set()

    async def listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, port, limit=PIECE)

    async def stall(self, directions: tuple[Direction, ...]) -> None:
        for direction in directions:
            self._open[direction].clear()

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop()

    async def drop(self) -> None:
        ending = list(self.connections)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def heal(self, port: int) -> None:
        self.delay_s = 0.0
        for gate in self._open.values():
            gate.set()
        if self._server is None:
            await self.listen(port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: the one that asyncio.streams makes reports a cancellation as an error.
        task = asyncio.create_task(self._connection(reader, writer))
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)
        if self._server is None:  # accepted at the very moment of cut()
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            host, _, port = self._target().rpartition(":")
            from_service, to_service = await asyncio.open_connection(host, int(port), limit=PIECE)
            writers.append(to_service)
            await _until_first_ends(
                self._pass_on("requests", reader, to_service),
                self._pass_on("replies", from_service, writer),
            )
        except OSError:
            pass  # either side went away: the other one learns it below
        finally:
            for one in writers:
                one.transport.abort()

    async def _pass_on(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(PIECE):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._open[direction].wait()
            writer.write(piece)
            await writer.drain()


async def _until_first_ends(*pumps: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(OSError):
            await asyncio.gather(*tasks, return_exceptions=True)
