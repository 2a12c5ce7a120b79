"""A Flower grid that stops waiting once enough clients have answered: rounds close by quorum and deadline.

Those that answer later are not lost: their updates go to the aggregator all the same (`flower_relay.py` hands in what it carries), and join
a later round if that takes late ones.
"""

from collections.abc import Iterable

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from compeft_server.flower.grid import GridAround, gather


class QuorumGrid(GridAround):
    """As `inner`, but training messages wait for `quorum` answers that are not errors (None, or more than there are messages: for all
    answers), and for `deadline_s` seconds at most.
    """

    def __init__(self, inner: Grid, quorum: int | None, deadline_s: float) -> None:
        super().__init__(inner)
        self._quorum, self._deadline_s = quorum, deadline_s

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The answers that are here when there are enough of them, or the time is over: `timeout` seconds, for training the deadline."""
        messages = list(messages)
        if not messages or any(m.metadata.message_type != MessageType.TRAIN for m in messages):
            return self._inner.send_and_receive(messages, timeout=timeout)
        return gather(self._inner, messages, self._quorum, self._deadline_s)
