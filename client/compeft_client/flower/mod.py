"""CompressionMod: the one line that makes a Flower client's arrays travel compressed and signed.

    from compeft_client import CompressionMod

    app = ClientApp(mods=[CompressionMod()])

Who this client is and which aggregator it trusts stands in the node configuration that its own operator wrote, or in the site folder that
the environment variable COMPEFT_SITE names. An app's author may take it from elsewhere (`config`); nothing that a server sends decides it.

Incoming: a message with a task instead of arrays gets its arrays from the aggregator, checked. The app trains as ever. Outgoing: its
arrays become a compressed, signed update at the aggregator, and the reply carries a receipt. Whether this client reaches the aggregator
itself, or a letter in Flower's message carries all of that, is the server's to say (`Plan(relay=True)`) and changes no check. If tensors
rest in a round, the app finds the endings of their names in the record `resting`, and must leave them as they are. A message without a
task passes through untouched, so the same app also runs without the strategy's other half. Put it first in the list: what comes after
it (clipping, noise) then works on plain arrays.
"""

import json
import math
import os
from collections.abc import Callable, Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from compeft_client.checkpoints.peft_fields import check_fields, differing_field, is_off, known_fields
from compeft_client.exchange.connections import Letters
from compeft_client.exchange.edge_client import NO_ORIGIN, EdgeClient, Synced, Trained
from compeft_client.exchange.quality_floor import Floor
from compeft_client.flower import uncompressed
from compeft_client.flower.simulation import own_or_environment
from compeft_client.identity.edge_config import edge_of
from compeft_core import flatten, unflatten
from compeft_core.errors import FormatError, InputError
from compeft_proto import relay_letter, tracing
from compeft_proto.errors import WrongAdapterError
from compeft_proto.keys import SigningKey
from compeft_proto.round_task import DTYPES, ORDER, RECORD, RESTING, Origin, RoundTask, as_type, task_from_values
from compeft_proto.v1 import exchange_pb2 as xp

App = Callable[[Message, Context], Message]


class CompressionMod:
    """A Flower mod.

    origin: what this client trains with; the aggregator refuses an update with another origin than its expert's. None takes it that the app
    trains with what the expert is bound to. config: the client's own configuration, as `compeft_client.identity.edge_config.edge_of` takes
    it: by default the node's, and without one the site folder that the environment variable COMPEFT_SITE names.
    floor: what an update must still be worth on this client's validation rows; None compresses as the round asks.
    """

    def __init__(
        self,
        origin: Callable[[Context], Origin] | None = None,
        config: Callable[[Context], Mapping[str, object]] = own_or_environment,
        floor: Callable[[Context], Floor | None] = lambda _: None,
    ) -> None:
        self._origin, self._config, self._floor = origin, config, floor

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Sync, run the app, submit. Errors of the exchange end the message: Flower reports them, the round goes on without."""
        record = message.content.config_records.get(RECORD)
        if record is None:
            return call_next(message, context)
        task, carried = task_from_values(record), record.get(tracing.TRACEPARENT)
        tracing.start_tracing("compeft-client", os.environ)
        kind = "train" if message.metadata.message_type == MessageType.TRAIN else "evaluate"
        names: dict[str, str | int] = {"expert": task.expert, "run": task.run, "round": task.round, "node": str(context.node_id)}
        try:
            with tracing.span(f"client {kind}", carried if isinstance(carried, str) else "", **names):
                return self._exchanged(message, context, call_next, task)
        finally:
            tracing.flush()

    def _exchanged(self, message: Message, context: Context, call_next: App, task: RoundTask) -> Message:
        record = message.content.config_records[RECORD]
        key, edge = str(record["arrays-key"]), edge_of(self._config(context))
        letters = _letters(message, edge.key)
        del message.content[RECORD]
        with EdgeClient(edge, letters) as client:
            if letters is not None and not letters.answers:
                return _enclosed(Message(RecordDict(), reply_to=message), client, task, letters)
            origin = self._origin(context) if self._origin else NO_ORIGIN
            synced = client.sync(task.expert, task.version, task.run, task.round, origin=origin)
            _check_adapter(synced, origin)
            message.content[key] = _arrays(synced, record.get(ORDER), record.get(DTYPES))
            if message.metadata.message_type == MessageType.TRAIN:
                client.check_ready(task)
            if task.resting:
                message.content[RESTING] = ConfigRecord({RESTING: list(task.resting)})
            asked = dict(message.content.items())
            reply = call_next(message, context)
            if reply.has_error():
                return reply
            beside: dict[str, float | int] = {}
            if message.metadata.message_type == MessageType.TRAIN:
                self._submit(client, task, synced, reply, origin, context)
            else:
                message.content.clear()
                message.content.update(asked)
                beside = uncompressed.measured(message, context, call_next, key)
            if letters is not None:
                _enclosed(reply, client, task, letters)
        reply.content[RECORD] = ConfigRecord({"keyid": edge.key.keyid, "version": synced.version, **beside})
        return reply

    def _submit(
        self, client: EdgeClient, task: RoundTask, synced: Synced, reply: Message, origin: Origin, context: Context
    ) -> None:
        """Take the tuned arrays out of the reply and send their task vector."""
        records = dict(reply.content.array_records)
        if len(records) != 1:
            raise FormatError(f"the app's reply has {len(records)} ArrayRecords, expected one with the tuned arrays")
        ((key, arrays),) = records.items()
        tuned = flatten(synced.layout, {name: array.numpy() for name, array in arrays.items()})
        if task.measure_uncompressed:
            uncompressed.keep(context, arrays, synced.version + 1)
        del reply.content[key]
        metrics = next(iter(reply.content.metric_records.values()), MetricRecord())
        numbers = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        stated = origin if self._origin else synced.origin
        trained = Trained(tuned - synced.vector, _weight(metrics, task.weighted_by), numbers, stated)
        client.submit(task, trained, self._floor(context))


def _check_adapter(synced: Synced, origin: Origin) -> None:
    """Refuse an expert whose adapter cannot be averaged, has an option that this version does not know, or differs from this client's own.

    Errors: InputError, naming the option and the way out; WrongAdapterError, naming the first field that differs.
    """
    if not synced.adapter_config:
        return
    try:
        fields = json.loads(synced.adapter_config)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{synced.expert} has an adapter configuration that is not JSON") from error
    if not isinstance(fields, dict):
        return
    if "peft_type" in fields:
        unknown = [n for n, v in sorted(fields.items()) if n not in known_fields(fields) and not is_off(v)]
        if unknown:
            raise InputError(
                f"{synced.expert} is trained with the option {unknown[0]}: {fields[unknown[0]]!r}, "
                "which this version does not know: upgrade compeft"
            )
        check_fields(fields, "rounds", synced.expert)
    if origin.adapter_config and origin.adapter_config != synced.adapter_config:
        own = json.loads(origin.adapter_config)
        name = differing_field(own, fields, "rounds") or next(
            (n for n in sorted({*own, *fields}) if own.get(n) != fields.get(n)), "another encoding"
        )
        raise WrongAdapterError(
            f"this client's adapter has {name} {own.get(name)!r}, {synced.expert} has {fields.get(name)!r}: build the adapter with the "
            "expert's own configuration"
        )


def _weight(metrics: MetricRecord, name: str) -> float:
    """The update's weight: the metric that the task names. Errors: InputError if it is missing, or not a finite number of 0 or more."""
    value = metrics.get(name)
    if not isinstance(value, int | float):
        raise InputError(
            f"the app's reply lacks the metric {name!r}, by which the strategy weighs: it has {', '.join(metrics) or 'none'}"
        )
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"invalid weight {name}={value}: expected a finite number of 0 or more, such as the number of examples")
    return float(value)


def _letters(message: Message, key: SigningKey) -> Letters | None:
    """Take the relay letter out of a message; None without one: this client then calls the aggregator itself. Errors: FormatError."""
    record = message.content.array_records.get(relay_letter.RECORD)
    if record is None:
        return None
    del message.content[relay_letter.RECORD]
    try:
        return Letters(key, xp.Letter.FromString(record[relay_letter.RECORD].data))
    except (KeyError, DecodeError) as error:
        raise FormatError("the message's relay letter is not a valid Letter") from error


def _enclosed(reply: Message, client: EdgeClient, task: RoundTask, letters: Letters) -> Message:
    """The reply with a letter: the update, if there is one, and what is to be answered next."""
    letters.enclose(client.next_request(task.expert, task.run, task.round))
    data = letters.reply.SerializeToString()
    reply.content[relay_letter.RECORD] = ArrayRecord({relay_letter.RECORD: Array("uint8", (len(data),), relay_letter.KIND, data)})
    return reply


def _arrays(synced: Synced, order: object, dtypes: object) -> ArrayRecord:
    """The synced arrays in the app's order, which some apps go by instead of by names, and in its types.

    Errors: FormatError if `order` is not a permutation of the arrays' places, or `dtypes` not one known type for each.
    """
    arrays = list(unflatten(synced.layout, synced.vector).items())
    if not isinstance(order, list) or sorted(order) != list(range(len(arrays))):
        raise FormatError(f"invalid order of arrays in the task: expected a permutation of 0 to {len(arrays) - 1}")
    if not isinstance(dtypes, list) or len(dtypes) != len(arrays):
        raise FormatError(f"invalid types of arrays in the task: expected {len(arrays)}, one for each array")
    placed = zip((arrays[place] for place in order), dtypes, strict=True)
    return ArrayRecord({name: Array(as_type(array, str(dtype))) for (name, array), dtype in placed})
