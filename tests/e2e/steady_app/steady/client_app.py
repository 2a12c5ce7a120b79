"""The client: moves its numbers by noise that depends on its partition and on nothing else."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from compeft_client.flower.mod import CompressionMod

app = ClientApp(mods=[CompressionMod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    random = np.random.default_rng(int(str(context.node_config["partition-id"])))
    tuned = {
        name: Array(array.numpy() + random.normal(0, 1, array.shape).astype(np.float32))
        for name, array in message.content.array_records["arrays"].items()
    }
    content = RecordDict({"arrays": ArrayRecord(tuned), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    size = sum(float(np.abs(array.numpy()).mean()) for array in message.content.array_records["arrays"].values())
    return Message(RecordDict({"metrics": MetricRecord({"accuracy": size, "num-examples": 1})}), reply_to=message)
