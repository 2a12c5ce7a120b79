"""The client: arrays in, one local epoch on its own domain, arrays out; and the same arrays measured on its own test rows."""

import resource
import time
from pathlib import Path
from typing import cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from compeft_client.flower.mod import CompressionMod
from compeft_client.models.adapter import rest
from compeft_client.models.fine_tune import (
    Classifier,
    TuningSettings,
    evaluate,
    features,
    fine_tune,
    fit_probe,
    prepare_device,
    score,
)
from compeft_proto.round_task import RESTING
from sentiment.expert import LABELS, origin
from sentiment.task import DATA, Domain, adapter_of, arrays_of, load_arrays, load_classifier, load_domain

app = ClientApp(mods=[CompressionMod(lambda context: origin(int(context.run_config["rank"])))])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Measure the arrays received, fine-tune them on this client's rows and answer with the result.

    Metrics: `accuracy` and `loss` of the arrays received on `test-examples` test rows; `num-examples` training rows;
    `train-loss`, `train-seconds`; peak memory. In the round named by `base-row-round` also `base-accuracy`: the frozen base
    model with a probe fitted here, which costs no bytes at all.
    """
    config = message.content.config_records["config"]
    server_round = int(str(config["server-round"]))
    classifier, domain = received(message, context)
    measured = evaluate(classifier, domain.test)
    metrics = MetricRecord({"accuracy": measured.accuracy, "loss": measured.loss, "test-examples": measured.count})
    if config.get("base-row-round") == server_round:
        metrics["base-accuracy"] = base_accuracy(classifier, domain)
    resting = message.content.config_records.get(RESTING, {})
    rest(adapter_of(classifier), [str(ending) for ending in cast(list[object], resting.get(RESTING, []))])
    start = time.perf_counter()
    metrics["train-loss"] = fine_tune(classifier, domain.train, settings(context, server_round))
    metrics.update({"train-seconds": time.perf_counter() - start, "num-examples": len(domain.train), **peak_memory()})
    arrays = ArrayRecord({name: Array(array) for name, array in arrays_of(classifier).items()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics, "device": device_record()}), reply_to=message)


@app.evaluate()
def measure(message: Message, context: Context) -> Message:
    """Measure the arrays received on this client's test rows."""
    classifier, domain = received(message, context)
    measured = evaluate(classifier, domain.test)
    metrics = MetricRecord({"accuracy": measured.accuracy, "loss": measured.loss, "num-examples": measured.count})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def received(message: Message, context: Context) -> tuple[Classifier, Domain]:
    """The classifier with the arrays of a message, and this client's rows.

    Node configuration: `partition-id` picks the domain; `data-dir` names a folder of the node's own, if its rows are not to
    come with the app.
    """
    device = prepare_device(int(context.run_config["threads"]))
    classifier = load_classifier(int(context.run_config["rank"]), device)
    load_arrays(classifier, {name: array.numpy() for name, array in message.content.array_records["arrays"].items()})
    folder = Path(str(context.node_config.get("data-dir", DATA)))
    return classifier, load_domain(int(context.node_config["partition-id"]), folder)


def base_accuracy(classifier: Classifier, domain: Domain) -> float:
    """Accuracy of the frozen base with a probe fitted on this client's own training rows."""
    with adapter_of(classifier).disable_adapter():
        train_features, test_features = features(classifier, domain.train), features(classifier, domain.test)
    probe = fit_probe(train_features, domain.train.labels, len(LABELS))
    return score(probe, test_features, domain.test.labels).accuracy


def settings(context: Context, server_round: int) -> TuningSettings:
    """How to fine-tune in this round; the seed differs by run, round and client."""
    run = context.run_config
    return TuningSettings(
        seed=1_000_000 * int(run["seed"]) + 1000 * server_round + int(context.node_config["partition-id"]),
        epochs=int(run["local-epochs"]),
        batch_size=int(run["batch-size"]),
        lr=float(run["lr"]),
        head_lr=float(run["head-lr"]),
        b_ratio=float(run["b-ratio"]),
    )


def peak_memory() -> dict[str, int]:
    """Most bytes this process ever held, on the host and on the GPU (0 without one)."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak-memory-bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "peak-gpu-bytes": gpu}


def device_record() -> ConfigRecord:
    """What the training ran on."""
    return ConfigRecord({"name": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"})
