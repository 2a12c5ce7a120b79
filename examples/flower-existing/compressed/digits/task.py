"""The model, the data, and how the one learns from the other. No Flower in here.

Data: the 1,797 images of 8 x 8 pixels that scikit-learn carries (`load_digits`), so nothing is downloaded.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

CENTRAL = 297
"""Images that no client has: for an evaluation at the server."""
SEED = 0


class Net(nn.Module):
    """Two convolutions and three linear layers, 60,670 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 2 * 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (n, 10), of images, (n, 1, 8, 8)."""
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


def load_data(partition: int, partitions: int, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """One client's batches to train on, and to test on: a fifth of its images."""
    images, labels = _digits()
    mine = slice(CENTRAL + partition, None, partitions)
    images, labels = images[mine], labels[mine]
    cut = len(labels) // 5
    train, test = TensorDataset(images[cut:], labels[cut:]), TensorDataset(images[:cut], labels[:cut])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


def load_central_data(batch_size: int) -> DataLoader:
    """The server's batches."""
    images, labels = _digits()
    return DataLoader(TensorDataset(images[:CENTRAL], labels[:CENTRAL]), batch_size)


def train(net: Net, batches: DataLoader, epochs: int, lr: float, proximal_mu: float = 0.0) -> float:
    """SGD with momentum; the mean loss. FedProx asks for a `proximal_mu` above 0: it holds the model near the one that came."""
    received = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        for images, labels in batches:
            loss = functional.cross_entropy(net(images), labels)
            if proximal_mu:
                distance = sum((p - r).square().sum() for p, r in zip(net.parameters(), received, strict=True))
                loss = loss + proximal_mu / 2 * distance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def test(net: Net, batches: DataLoader) -> tuple[float, float]:
    """Loss and accuracy."""
    net.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in batches:
        logits = net(images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, right / count


def _digits() -> tuple[Tensor, Tensor]:
    """All images, (1797, 1, 8, 8) in 0 to 1, and labels, in one order for everybody."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    pixels = torch.tensor(images[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return pixels, torch.tensor(labels[order], dtype=torch.long)
