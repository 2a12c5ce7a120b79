"""A Flower grid in this process: every message is turned into bytes and back, and every node is a real ClientApp."""

import itertools
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class LoopbackGrid(Grid):
    """Nodes 1000, 1001, ... with these node configurations. Those in `slow` do not answer training messages, which are kept in `asleep`."""

    def __init__(
        self,
        app: ClientApp,
        node_configs: list[dict[str, object]],
        run_id: int = 7,
        run_config: dict[str, object] | None = None,
    ) -> None:
        self._app, self._run = app, Run.create_empty(run_id)
        self._contexts = {
            1000 + i: Context(
                run_id=run_id, node_id=1000 + i, node_config=config, state=RecordDict(), run_config=run_config or {}
            )
            for i, config in enumerate(node_configs)
        }
        self._inbox: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self.slow: set[int] = set()
        self.asleep: list[Message] = []
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = [_over_the_wire(message) for message in messages]
        for message in sent:
            if message.metadata.dst_node_id in self.slow and message.metadata.message_type == "train":
                self.asleep.append(message)
            else:
                self._answer(message)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._inbox.pop(number) for number in list(message_ids) if number in self._inbox]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        TaskIdentity.node_id = node
        try:
            reply = self._app(message, self._contexts[node])
        except Exception as error:  # noqa: BLE001  # as Flower does: whatever a ClientApp raises becomes an error reply
            reply = Message(Error(2, repr(error)), reply_to=message)
        TaskIdentity.node_id = 1
        self._inbox[message.metadata.message_id] = reply if reply.has_error() else _over_the_wire(reply)


def _over_the_wire(message: Message) -> Message:
    with no_object_id_recompute():
        number = message.object_id
        parts = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    received = inflate_object_from_contents(number, parts)
    for each in (message, received):
        each.metadata.__dict__["_message_id"] = number
    assert isinstance(received, Message)
    return received
