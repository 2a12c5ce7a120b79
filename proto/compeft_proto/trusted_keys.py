"""The keys of its aggregator that a client trusts. When the aggregator has rotated its key, the client asks for the statement by which the
old key introduced the new one, verifies it, and retries.

Invariant: a statement and the answer to a command must be signed by the newest key; versions and receipts, which are kept, may be signed by
an earlier one.
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
"""Returns the aggregator's key rotations, oldest first; none if it cannot be reached."""


def listed_handovers(channel: grpc.Channel) -> Iterable[ep.Introduction]:
    """The key rotations that the aggregator lists; none if the call fails."""
    try:
        return rpc.MembershipStub(channel).ListHandovers(ep.HandoversRequest(), timeout=WAIT_S).statements
    except grpc.RpcError:
        return ()


class TrustedKeys:
    """Trusted keys, newest first. `learned` is called with the new keys after a rotation."""

    def __init__(
        self,
        keys: tuple[PublicKey, ...],
        handovers: Handovers,
        learned: Callable[[tuple[PublicKey, ...]], None] = lambda _: None,
    ) -> None:
        self._keys, self._handovers, self._learned = keys, handovers, learned

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """Every trusted key, the newest first."""
        return self._keys

    @property
    def newest(self) -> dsse.Lookup:
        """Looks up the newest key: for answers made just now."""
        return dsse.only(self._keys[0])

    @property
    def any(self) -> dsse.Lookup:
        """Looks up every trusted key: for messages that are kept."""
        return dsse.any_of(*self._keys)

    def with_rotation(self, work: Callable[[], T]) -> T:
        """The result of `work`, which is called once more if it met an unknown key that the newest trusted key has introduced.

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
