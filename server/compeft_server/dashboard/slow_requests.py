"""The HTTP protocol of the live page: a connection that has not sent a whole request after SLOW_S seconds is ended.

Uvicorn ends connections that wait between two requests; one that sends half of its headers, or half of a form, it would keep for ever.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOW_S = 10.0
"""Seconds for a request to arrive, from its connection or from the end of the answer before."""
ARRIVING = (h11.IDLE, h11.SEND_BODY)


class PromptH11(H11Protocol):
    """HTTP/1.1 by h11, with a deadline for each request to be here whole."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's own
        """The first request is awaited."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """More of a request has arrived, or all of it."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The next request is awaited."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state not in ARRIVING:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(SLOW_S, self._expire)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        transport: Any = self.transport
        if not transport.is_closing():
            transport.abort()
