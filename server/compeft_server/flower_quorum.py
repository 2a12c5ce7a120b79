"""A Flower grid that stops waiting once enough clients have answered: rounds close by quorum and deadline.

Those that answer later are not lost: their updates go to the aggregator, not through here, and join a later round if that takes late ones.
"""

import time
from collections.abc import Iterable

from flwr.app import Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

POLL_S = 0.5


class QuorumGrid(Grid):
    """As `inner`, but training messages wait for `quorum` answers that are no errors (None, or more than there are messages: for all
    answers), and for `deadline_s` seconds at most.
    """

    def __init__(self, inner: Grid, quorum: int | None, deadline_s: float) -> None:
        self._inner, self._quorum, self._deadline_s = inner, quorum, deadline_s

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
        """The answers that are here when there are enough of them, or the time is over: `timeout` seconds, for training the deadline."""
        messages = list(messages)
        if not messages or any(m.metadata.message_type != MessageType.TRAIN for m in messages):
            return self._inner.send_and_receive(messages, timeout=timeout)
        waiting = {number for number in self._inner.push_messages(messages) if number}
        quorum = len(waiting) if self._quorum is None else self._quorum
        answers: list[Message] = []
        give_up = time.monotonic() + self._deadline_s
        while True:
            for answer in self._inner.pull_messages(waiting):
                answers.append(answer)
                waiting.discard(answer.metadata.reply_to_message_id)
            enough = not waiting or sum(not m.has_error() for m in answers) >= quorum
            if enough or time.monotonic() > give_up:
                return answers
            time.sleep(POLL_S)
