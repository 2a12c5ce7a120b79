"""The client's own update before compression, kept from training to the next evaluation, where it is measured too.

It shows what compression costs without a second run: the same client, the same rows, its tuned arrays as they were. They stay on this
client, in Flower's `Context.state`; what leaves it are metrics.
"""

import math
from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from compeft_proto.round_task import TRAINED_FROM, UNCOMPRESSED

App = Callable[[Message, Context], Message]
KEPT, VERSION = "compeft-uncompressed", "compeft-uncompressed-version"


def keep(context: Context, arrays: ArrayRecord, version: int) -> None:
    """Keep tuned arrays, which lead to this version with those of the other clients. Those kept before are dropped."""
    context.state[KEPT] = arrays
    context.state[VERSION] = MetricRecord({VERSION: version})


def measured(message: Message, context: Context, app: App, key: str) -> dict[str, float | int]:
    """The metrics of what was kept, which is dropped: by name after `uncompressed-`, and the version. Empty if nothing was kept.

    message: one that asks to evaluate, with arrays under `key`; they are replaced.
    """
    kept, version = context.state.array_records.get(KEPT), context.state.metric_records.get(VERSION)
    if kept is None or version is None:
        return {}
    del context.state[KEPT], context.state[VERSION]
    message.content[key] = kept
    reply = app(message, context)
    if reply.has_error():
        return {}
    numbers = _numbers(reply.content)
    return {f"{UNCOMPRESSED}{name}": value for name, value in numbers.items()} | {TRAINED_FROM: int(str(version[VERSION]))}


def _numbers(content: RecordDict) -> dict[str, float]:
    records = content.metric_records.values()
    return {n: float(v) for r in records for n, v in r.items() if isinstance(v, int | float) and math.isfinite(v)}
