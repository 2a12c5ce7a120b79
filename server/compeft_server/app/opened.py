"""The objects that a command of the operator needs, built from a data directory: its ledger, store, keys and what works on them."""

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from compeft_proto.clock import now_ms
from compeft_proto.keys import PublicKey, SigningKey
from compeft_server.admin.lineage import Versions
from compeft_server.aggregation.access import Access
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.chunks.store import ChunkStore
from compeft_server.data_directory import existing, open_ledger, open_store
from compeft_server.identity.aggregator_keys import earlier_keys, own_key
from compeft_server.ledger.ledger import Ledger


class OpenedData:
    """One data directory. Each object is built when it is first asked for, and once; leaving the block closes the ledger."""

    def __init__(self, data: Path) -> None:
        self.data = data

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, which is made if absent. Errors: as `database.open_engine`."""
        return open_ledger(self.data)

    @cached_property
    def store(self) -> ChunkStore:
        """The chunk store, which is made if absent. Errors: InputError."""
        return open_store(self.data)

    @cached_property
    def key(self) -> SigningKey:
        """The aggregator's signing key. Errors: as `aggregator_keys.own_key`."""
        return own_key(self.data)

    @cached_property
    def earlier(self) -> tuple[PublicKey, ...]:
        """Public keys that the aggregator had before."""
        return earlier_keys(self.data)

    @cached_property
    def log(self) -> ExpertLog:
        """The log of experts and their versions, to read."""
        return ExpertLog(self.key.public, self.store, self.ledger, self.earlier)

    @cached_property
    def versions(self) -> Versions:
        """Operations on versions: lineage, verification, rollback, forgetting."""
        return Versions(self.key, self.store, self.ledger, self.earlier)

    @cached_property
    def access(self) -> Access:
        """The policy of the experts."""
        return Access(self.ledger, self.log, now_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if "ledger" in self.__dict__:
            self.ledger.close()


def opened(data: Path) -> OpenedData:
    """The objects of a data directory that exists. Errors: InputError: a mistyped directory is not made by looking at it."""
    return OpenedData(existing(data))
