"""Live updates: one server-sent event whenever the ledger has changed. The page then asks for itself again; no data travels here."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool

from compeft_server.ledger.lookups.totals import Summaries

EVERY_S = 1.0
"""How often the ledger is looked at, however many pages are open."""
QUIET_S = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection."""
LONGEST_S = 3600.0
MAX_LISTENERS = 64


class Pulse:
    """Watches one ledger. `stopping` says that the server is about to end."""

    def __init__(self, summaries: Summaries, stopping: Callable[[], bool]) -> None:
        self._summaries, self._stopping = summaries, stopping
        self._seen: tuple[int, ...] = ()
        self._seen_at = -EVERY_S
        self._lock = asyncio.Lock()
        self._listeners = 0

    @property
    def full(self) -> bool:
        """Whether as many pages listen as may."""
        return self._listeners >= MAX_LISTENERS

    async def listen(self) -> AsyncIterator[str]:
        """The events for one page, until it goes away, an hour is over, or the server ends."""
        self._listeners += 1
        try:
            async for event in self._events():
                yield event
        finally:
            self._listeners -= 1

    async def _events(self) -> AsyncIterator[str]:
        began = said = time.monotonic()
        last = await self._marks()
        yield "event: ready\ndata: 1\n\n"
        while not self._stopping() and (now := time.monotonic()) - began < LONGEST_S:
            if (marks := await self._marks()) != last:
                last, said = marks, now
                yield "event: changed\ndata: 1\n\n"
            elif now - said > QUIET_S:
                said = now
                yield ": still here\n\n"
            await asyncio.sleep(EVERY_S)

    async def _marks(self) -> tuple[int, ...]:
        async with self._lock:
            if time.monotonic() - self._seen_at >= EVERY_S / 2:
                self._seen = await run_in_threadpool(self._summaries.marks)
                self._seen_at = time.monotonic()
            return self._seen
