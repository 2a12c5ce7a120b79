"""One thread that writes for all: whatever waits goes into one transaction, so that one fsync pays for many.

Promises: a write is durable when its future has a result; one that fails leaves nothing and spoils no other; they happen in the
order in which they were asked for. A write is a function of the connection alone, since it may run twice.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import sqlalchemy as sa

from compeft_server.ledger.database import take_turn

Write = Callable[[sa.Connection], None]
MAX_TOGETHER = 256
"""Most writes in one transaction."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A write, and who waits for it."""

    write: Write
    done: Future[None] = field(default_factory=Future)


class GroupCommit:
    """Writes to one database. The thread starts with the first of them; `close` ends it after the last."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def ask(self, write: Write) -> Future[None]:
        """Write soon; the future says when it is durable, or why it is not."""
        waiting = _Waiting(write)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._inbox.put(waiting)
        return waiting.done

    def write(self, write: Write) -> None:
        """Write and wait until it is durable. Errors: what `write` raises, and those of the database."""
        self.ask(write).result()

    def close(self) -> None:
        """Wait for everything that was asked for."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        going = True
        while going:
            together = [self._inbox.get()]
            while len(together) < MAX_TOGETHER and not self._inbox.empty():
                together.append(self._inbox.get())
            going = None not in together
            self._commit([waiting for waiting in together if waiting is not None])

    def _commit(self, together: Sequence[_Waiting]) -> None:
        """All in one transaction; if that fails, each in one of its own, so that only the culprit is told."""
        try:
            with self._engine.begin() as connection:
                take_turn(connection)
                for waiting in together:
                    waiting.write(connection)
        except Exception as error:  # noqa: BLE001  # it belongs to whoever asked
            if len(together) == 1:
                together[0].done.set_exception(error)
                return
            for waiting in together:
                self._commit([waiting])
            return
        for waiting in together:
            waiting.done.set_result(None)
