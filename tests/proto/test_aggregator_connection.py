"""The connection of one member to one aggregator: what it refuses before a byte leaves, and how it fails."""

import pytest

from compeft_core.errors import InputError
from compeft_proto import envelope as dsse
from compeft_proto.aggregator_connection import AggregatorConnection, date
from compeft_proto.errors import UnknownKeyError, UnreachableError
from compeft_proto.keys import new_key
from compeft_proto.v1 import expert_pb2 as pb

NOBODY = "127.0.0.1:9"
"""An address of this machine where no server listens."""


def test_an_address_elsewhere_needs_tls() -> None:
    with pytest.raises(InputError, match="not on this machine"):
        AggregatorConnection(new_key(), "aggregator.example:8443", None, (new_key().public,))


def test_two_requests_have_two_nonces() -> None:
    first, second = pb.SyncRequest(), pb.SyncRequest()
    date(first)
    date(second)
    assert len(first.nonce) == len(second.nonce) == 16
    assert first.nonce != second.nonce
    assert first.issued_at_ms > 0


def test_a_command_that_cannot_be_sent_is_an_unreachable_error() -> None:
    connection = AggregatorConnection(new_key(), NOBODY, None, (new_key().public,))
    try:
        with pytest.raises(UnreachableError):
            connection.command(dsse.seal(connection.key, dsse.QUALITY, pb.QualityReport()), dsse.RECORDED)
    finally:
        connection.close()


def test_an_answer_may_be_signed_by_an_earlier_key_and_by_no_other() -> None:
    newest, older = new_key(), new_key()
    connection = AggregatorConnection(new_key(), NOBODY, None, (newest.public, older.public))
    try:
        for key in (newest, older):
            sealed = dsse.seal(key, dsse.RECEIPT, pb.Receipt(sequence=3))
            assert connection.opened(sealed, dsse.RECEIPT).sequence == 3
        with pytest.raises(UnknownKeyError, match="another aggregator answers"):
            connection.opened(dsse.seal(new_key(), dsse.RECEIPT, pb.Receipt()), dsse.RECEIPT)
    finally:
        connection.close()
