"""A Flower grid around another one: everything goes to that one. What changes something overrides what it changes."""

import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

POLL_S = 0.5


def gather(grid: Grid, messages: Iterable[Message], quorum: int | None, timeout_s: float | None) -> list[Message]:
    """Push messages; the answers that are here when `quorum` of them are not errors (None, or more than there are messages: all
    answers), or after `timeout_s` seconds.
    """
    waiting = {number for number in grid.push_messages(messages) if number}
    quorum = len(waiting) if quorum is None else quorum
    answers: list[Message] = []
    give_up = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    while True:
        for answer in grid.pull_messages(waiting):
            answers.append(answer)
            waiting.discard(answer.metadata.reply_to_message_id)
        enough = not waiting or sum(not m.has_error() for m in answers) >= quorum
        if enough or time.monotonic() > give_up:
            return answers
        time.sleep(POLL_S)


class GridAround(Grid):
    """As `inner`."""

    def __init__(self, inner: Grid) -> None:
        self._inner = inner

    def set_run(self, run: Run) -> None:
        """As the inner grid's."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """As the inner grid's."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the inner grid's."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the inner grid's."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """As the inner grid's."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the inner grid's."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the inner grid's."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the inner grid's."""
        return self._inner.send_and_receive(messages, timeout=timeout)
