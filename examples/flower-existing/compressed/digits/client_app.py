"""The client: arrays in, some epochs on its own images, arrays out."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from compeft_client.flower.mod import CompressionMod
from digits.task import Net, load_data
from digits.task import test as measure
from digits.task import train as fit

app = ClientApp(mods=[CompressionMod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came on this client's images."""
    net, (batches, _) = received(message), loaders(context)
    config = message.content["config"]
    loss = fit(net, batches, int(context.run_config["local-epochs"]), config["lr"], config.get("proximal-mu", 0.0))
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(batches.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model that came on this client's test images."""
    net, (_, batches) = received(message), loaders(context)
    loss, accuracy = measure(net, batches)
    metrics = MetricRecord({"eval_loss": loss, "accuracy": accuracy, "num-examples": len(batches.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def received(message: Message) -> Net:
    """The model of a message."""
    torch.set_num_threads(1)
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def loaders(context: Context) -> tuple[torch.utils.data.DataLoader, torch.utils.data.DataLoader]:
    """The part of the data that this client has."""
    node, run = context.node_config, context.run_config
    return load_data(int(node["partition-id"]), int(node["num-partitions"]), int(run["batch-size"]))
