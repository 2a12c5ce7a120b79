"""FedAvg that counts what the arrays of its messages take, as FlowerTune's strategy does."""

from collections.abc import Iterable
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

BUDGET_MB = 200_000
"""FlowerTune's budget of communication for a run, in units of 2^20 bytes."""


class FlowerTune(FedAvg):
    """Federated averaging; `used_mb` is what all arrays took so far, both directions, in units of 2^20 bytes."""

    used_mb = 0.0

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """FedAvg's messages, counted."""
        return self.counted(super().configure_train(server_round, arrays, config, grid))

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's average, of counted replies."""
        return super().aggregate_train(server_round, self.counted(replies))

    def counted(self, messages: Iterable[Message]) -> list[Message]:
        """The same messages; those with content are added to `used_mb`."""
        kept = list(messages)
        records = [r for m in kept if m.has_content() for r in m.content.array_records.values()]
        more = sum(record.count_bytes() for record in records) / 2**20
        self.used_mb += more
        log(INFO, "communication: %.2f MB used (+%.2f MB) of %s MB", self.used_mb, more, f"{BUDGET_MB:,}")
        return kept
