"""Small Flower apps: a CNN with BatchNorm, a LoRA on a tiny language model, and clients that weigh, take part or fail differently."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]
CLASSES, WORDS, LENGTH = 10, 32, 8
PATTERNS = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Cnn(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer: 6,186 parameters and 98 buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c2, self.b2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.fc = nn.Linear(128, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.b1(self.c1(images))), 2)
        x = functional.max_pool2d(functional.relu(self.b2(self.c2(x))), 2)
        return self.fc(x.flatten(1))


class Lm(nn.Module):
    """Predicts the next word from the last two: an embedding, a frozen layer and a frozen output, with room for a LoRA on `mix`."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.out = nn.Embedding(WORDS, 48), nn.Linear(96, 96), nn.Linear(96, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(functional.relu(self.mix(self.words(words).flatten(1))))


def images(client: int, count: int = 192) -> Batch:
    """Noisy patterns, one for each class."""
    g = torch.Generator().manual_seed(client + 10)
    labels = torch.randint(0, CLASSES, (count,), generator=g)
    return (PATTERNS[labels] + 0.35 * torch.randn(count, 1, 8, 8, generator=g)).clamp(0, 1), labels


def sentences(client: int, count: int = 512) -> Batch:
    """Pairs of words and the word that follows: another one for each second word."""
    words = torch.randint(0, WORDS, (count, 2), generator=torch.Generator().manual_seed(client + 10))
    return words, (5 * words[:, 1] + 3) % WORDS


def lora() -> nn.Module:
    """The language model with a LoRA of rank 16."""
    torch.manual_seed(0)
    return get_peft_model(Lm(), LoraConfig(r=16, lora_alpha=32, target_modules=["mix", "out"]))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return Cnn()


def adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model)


@dataclass(frozen=True, slots=True)
class Task:
    """A model, its data, and how its arrays go in and out."""

    model: Callable[[], nn.Module]
    data: Callable[..., Batch]
    arrays: Callable[[nn.Module], dict[str, torch.Tensor]]
    load: Callable[[nn.Module, dict[str, torch.Tensor]], object]
    lr: float
    epochs: int


IMAGES = Task(cnn, images, lambda m: m.state_dict(), lambda m, s: m.load_state_dict(s), 0.05, 3)
SENTENCES = Task(lora, sentences, adapter, set_peft_model_state_dict, 0.02, 4)


@dataclass(frozen=True, slots=True)
class App:
    """A task and how its clients behave. weights: of each client, reported under `key`; `fails`: a client that raises in each round;
    `share`: the part of the clients that train in a round.
    """

    name: str
    task: Task = IMAGES
    key: str = "num-examples"
    weights: tuple[float, ...] = (192.0, 192.0, 192.0)
    fails: int = -1
    share: float = 1.0

    def strategy(self) -> FedAvg:
        least = max(2, int(self.share * len(self.weights)))
        return FedAvg(
            fraction_train=self.share,
            fraction_evaluate=0.0,
            min_train_nodes=least,
            min_available_nodes=len(self.weights),
            weighted_by_key=self.key,
        )

    def begun(self) -> ArrayRecord:
        return ArrayRecord(dict(self.task.arrays(self.task.model())))

    def train(self, message: Message, context: Context) -> Message:
        """Some epochs of SGD on this client's data, the same for the same arrays."""
        client = int(context.node_config["partition-id"])
        if client == self.fails:
            raise OSError(f"client {client} has no disk left")
        torch.set_num_threads(1)
        model = self._loaded(message.content["arrays"])
        x, y = self.task.data(client)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], self.task.lr, momentum=0.9)
        model.train()
        for _ in range(self.task.epochs):
            for start in range(0, len(y), 32):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[start : start + 32]), y[start : start + 32]).backward()
                optimizer.step()
        metrics = MetricRecord({self.key: self.weights[client]})
        arrays = ArrayRecord(dict(self.task.arrays(model)))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    def accuracy(self, arrays: ArrayRecord) -> float:
        """On data that no client has."""
        model = self._loaded(arrays).eval()
        x, y = self.task.data(99, 1000)
        with torch.no_grad():
            return float((model(x).argmax(1) == y).float().mean())

    def _loaded(self, arrays: ArrayRecord) -> nn.Module:
        model = self.task.model()
        self.task.load(model, arrays.to_torch_state_dict())
        return model


APPS = (
    App("CNN with BatchNorm"),
    App("LoRA on a language model", SENTENCES, weights=(512.0, 512.0, 512.0)),
    App("weighted by num-samples", key="num-samples", weights=(300.0, 100.0, 200.0)),
    App("fractional weights", key="share", weights=(0.5, 0.2, 0.3)),
    App("two of four clients a round", weights=(192.0,) * 4, share=0.5),
    App("one of three clients fails", fails=2),
)
