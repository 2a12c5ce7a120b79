"""The client: adds a little noise to a few numbers, slowly enough to be killed while it does."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from compeft_client.flower.mod import CompressionMod

app = ClientApp(mods=[CompressionMod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(1.0)
    random = np.random.default_rng()
    tuned = {
        name: Array(array.numpy() + random.normal(0, 1, array.shape).astype(np.float32))
        for name, array in message.content.array_records["arrays"].items()
    }
    content = RecordDict({"arrays": ArrayRecord(tuned), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
