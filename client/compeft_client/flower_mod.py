"""CompressionMod: the one line that makes a Flower client's arrays travel compressed and signed.

    app = ClientApp(mods=[CompressionMod()])

Incoming: a message with a task instead of arrays gets its arrays from the aggregator, checked. The app trains as ever. Outgoing: its
arrays become a compressed, signed update at the aggregator, and the reply carries a receipt. If tensors rest in a round, the app finds
the endings of their names in the record `resting`, and must leave them as they are. A message without a task passes
through untouched, so the same app also runs without the strategy's other half. Put it first in the list: what comes after it
(clipping, noise) then works on plain arrays.
"""

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord

from compeft_client.exchange import EdgeClient, Synced, Trained
from compeft_client.node import edge_of
from compeft_core import flatten, unflatten
from compeft_core.errors import FormatError
from compeft_proto.task import RECORD, RESTING, Origin, RoundTask, task_from_values

App = Callable[[Message, Context], Message]


class CompressionMod:
    """A Flower mod. `origin` tells what this client trains with; the aggregator refuses an update with another origin than its expert's."""

    def __init__(self, origin: Callable[[Context], Origin] = lambda _: Origin()) -> None:
        self._origin = origin

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Sync, run the app, submit. Errors of the exchange end the message: Flower reports them, the round goes on without."""
        record = message.content.config_records.get(RECORD)
        if record is None:
            return call_next(message, context)
        task, key, edge = task_from_values(record), str(record["arrays-key"]), edge_of(context.node_config)
        del message.content[RECORD]
        with EdgeClient(edge) as client:
            synced = client.sync(task.expert, task.version, task.run, task.round, origin=self._origin(context))
            message.content[key] = ArrayRecord({n: Array(a) for n, a in unflatten(synced.layout, synced.vector).items()})
            if message.metadata.message_type == MessageType.TRAIN:
                client.check_ready(task)
            if task.resting:
                message.content[RESTING] = ConfigRecord({RESTING: list(task.resting)})
            reply = call_next(message, context)
            if reply.has_error():
                return reply
            if message.metadata.message_type == MessageType.TRAIN:
                self._submit(client, task, synced, reply, context)
        reply.content[RECORD] = ConfigRecord({"keyid": edge.key.keyid, "version": synced.version})
        return reply

    def _submit(self, client: EdgeClient, task: RoundTask, synced: Synced, reply: Message, context: Context) -> None:
        """Take the tuned arrays out of the reply and send their task vector."""
        records = dict(reply.content.array_records)
        if len(records) != 1:
            raise FormatError(f"the app's reply has {len(records)} ArrayRecords, needed is one with the tuned arrays")
        ((key, arrays),) = records.items()
        tuned = flatten(synced.layout, {name: array.numpy() for name, array in arrays.items()})
        del reply.content[key]
        metrics = next(iter(reply.content.metric_records.values()), MetricRecord())
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        count = int(numbers.get("num-examples", 1))
        client.submit(task, Trained(tuned - synced.vector, count, numbers, self._origin(context)))
