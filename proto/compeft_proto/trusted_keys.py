"""Which keys of its aggregator a client believes. When the aggregator has changed its key, the statement by which the old key introduced
the new one is asked for and followed.

Invariant: statements and commands' answers must be signed by the newest key; what was signed to last (versions, receipts) may be by an
earlier one.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import grpc

from compeft_proto import envelope as dsse
from compeft_proto.errors import UnknownKeyError
from compeft_proto.key_handover import follow
from compeft_proto.keys import PublicKey
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as rpc

T = TypeVar("T")
WAIT_S = 30.0
Handovers = Callable[[], Iterable[ep.Introduction]]
"""Where the aggregator's changes of key are to be had, oldest first; none if it cannot be asked."""


def listed_handovers(channel: grpc.Channel) -> Iterable[ep.Introduction]:
    """Those that the aggregator itself lists."""
    try:
        return rpc.MembershipStub(channel).ListHandovers(ep.HandoversRequest(), timeout=WAIT_S).statements
    except grpc.RpcError:
        return ()


class TrustedKeys:
    """The keys believed, newest first. `learned` is told when they become others."""

    def __init__(
        self,
        keys: tuple[PublicKey, ...],
        handovers: Handovers,
        learned: Callable[[tuple[PublicKey, ...]], None] = lambda _: None,
    ) -> None:
        self._keys, self._handovers, self._learned = keys, handovers, learned

    @property
    def newest(self) -> dsse.Lookup:
        """For answers made just now."""
        return dsse.only(self._keys[0])

    @property
    def any(self) -> dsse.Lookup:
        """For what was signed to last."""
        return dsse.any_of(*self._keys)

    def with_rotation(self, work: Callable[[], T]) -> T:
        """`work`, and once more if it met a key that is unknown here and that the newest known key has introduced.

        Errors: those of `work`; SignatureError, FormatError for a wrong introduction.
        """
        try:
            return work()
        except UnknownKeyError as error:
            if not self._follow():
                raise UnknownKeyError(f"{error}: {self._way_out(error)}") from error
        return work()

    def _way_out(self, error: UnknownKeyError) -> str:
        if isinstance(error.__cause__, grpc.RpcError):
            return "the aggregator has revoked this client, or never let it in; its operator does with `compeft clients invite`"
        return (
            f"known here is {self._keys[0].keyid}; another aggregator answers, or it has a new key: ask its operator for "
            "aggregator.pub, or enrol again"
        )

    def _follow(self) -> bool:
        keys = follow(self._keys, self._handovers())
        if keys == self._keys:
            return False
        self._keys = keys
        self._learned(keys)
        return True
