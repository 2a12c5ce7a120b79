"""Tasks of a hundred clients and a small network in plain NumPy: handwritten digits (scikit-learn's, 8 x 8 pixels) and a mixture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from compeft_core import Layout, Vector, layout_of

Floats = NDArray[np.float32]
CLASSES = 10


@dataclass(frozen=True, slots=True, eq=False)
class ClientTask:
    """Rows of each client and of the test: features (n, inputs), labels (n,). The network has one hidden layer."""

    clients: list[tuple[Floats, NDArray[np.int64]]]
    test: tuple[Floats, NDArray[np.int64]]
    hidden: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Arrays of the network."""
        inputs = self.test[0].shape[1]
        return {
            "a.weight": (inputs, self.hidden),
            "b.weight": (self.hidden, CLASSES),
            "c.bias": (self.hidden,),
            "d.bias": (CLASSES,),
        }

    def layout(self, dense: bool) -> Layout:
        """The layout: biases dense, weights ternary, or all dense."""
        return layout_of(self.shapes, self.shapes if dense else ["c.bias", "d.bias"])


def digits(seed: int, clients: int = 100) -> ClientTask:
    """1,437 rows of scikit-learn's digits over the clients at random, 360 to test."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    features, labels = (features / 8 - 1).astype(np.float32)[order], labels.astype(np.int64)[order]
    return _spread(features, labels, 1437, clients, 128)


def mixture(seed: int, clients: int = 100) -> ClientTask:
    """Ten classes of three Gaussians each in 40 dimensions: 10,000 rows over the clients, 2,000 to test."""
    rng = np.random.default_rng(1000 + seed)
    centres = rng.normal(0, 1, (CLASSES, 3, 40))
    labels = rng.integers(0, CLASSES, 12_000)
    features = centres[labels, rng.integers(0, 3, 12_000)] + rng.normal(0, 1.2, (12_000, 40))
    return _spread(features.astype(np.float32), labels, 10_000, clients, 128)


TASKS = {"digits": digits, "mixture": mixture}


def _spread(features: Floats, labels: NDArray[np.int64], rows: int, clients: int, hidden: int) -> ClientTask:
    parts = np.array_split(np.arange(rows), clients)
    return ClientTask([(features[p], labels[p]) for p in parts], (features[rows:], labels[rows:]), hidden)


def start(task: ClientTask, layout: Layout, seed: int) -> Vector:
    """Initial values: He for the weights, zero for the biases; the same of both layouts."""
    rng = np.random.default_rng(seed)
    drawn = {
        name: (rng.normal(0, (2 / shape[0]) ** 0.5, shape) if len(shape) == 2 else np.zeros(shape)).astype(np.float32)
        for name, shape in task.shapes.items()
    }
    return np.concatenate([drawn[t.name].reshape(-1) for t in layout.tensors])


def trained(task: ClientTask, layout: Layout, state: Vector, client: int, steps: int, rate: float) -> Vector:
    """The task vector of a client: full-batch gradient descent on its rows."""
    arrays = _arrays(layout, state.copy())
    features, labels = task.clients[client]
    for _ in range(steps):
        before = features @ arrays["a.weight"] + arrays["c.bias"]
        hidden = np.maximum(before, 0)
        error = _softmax(hidden @ arrays["b.weight"] + arrays["d.bias"])
        error[np.arange(labels.size), labels] -= 1
        error /= labels.size
        back = (error @ arrays["b.weight"].T) * (before > 0)
        for name, change in (
            ("b.weight", hidden.T @ error),
            ("d.bias", error.sum(0)),
            ("a.weight", features.T @ back),
            ("c.bias", back.sum(0)),
        ):
            arrays[name] -= rate * change
    tuned = np.concatenate([arrays[t.name].reshape(-1) for t in layout.tensors])
    return (tuned - state).astype(np.float32)


def accuracy(task: ClientTask, layout: Layout, state: Vector) -> float:
    """Percent of the test rows that are right."""
    arrays = _arrays(layout, state)
    features, labels = task.test
    hidden = np.maximum(features @ arrays["a.weight"] + arrays["c.bias"], 0)
    return 100 * float(np.mean((hidden @ arrays["b.weight"] + arrays["d.bias"]).argmax(1) == labels))


def _arrays(layout: Layout, state: Vector) -> dict[str, Floats]:
    found, at = {}, 0
    for tensor in layout.tensors:
        found[tensor.name] = state[at : at + tensor.size].reshape(tensor.shape)
        at += tensor.size
    return found


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
