"""The line that lets a member in: it survives the way by mail, and damage is seen before anything is sent."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core.errors import CompeftError, InputError
from compeft_proto.errors import BusyError
from compeft_proto.invitation import Invitation, from_text, new_invitation, to_text
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_server.domain.invitations import Throttle, fault, valid_ms
from compeft_server.domain.records import Invited

MADE = Invitation(b"\x01" * 8, b"\x02" * 32, b"\x03" * 32, "agg.example:9444")
TEXT = to_text(MADE)


@given(st.sampled_from([b"", b"\x07" * 32]), st.text(st.characters(codec="utf-8"), max_size=80))
def test_an_invitation_is_read_as_it_was_written(fingerprint: bytes, address: str) -> None:
    made = replace(new_invitation(fingerprint, ""), address=address)
    assert from_text(f"  {to_text(made)}\n") == made


@pytest.mark.parametrize(
    "address", ["nonsense", "agg.example", ":9444", "agg.example:", "agg.example:0", "agg.example:70000", "a:²"]
)
def test_nobody_is_invited_to_what_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT"):
        new_invitation(b"", address)
    assert new_invitation(b"", "[::1]:9444").address == "[::1]:9444"


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("ABab01-_ =\x00é"))
def test_a_slip_of_the_pen_is_seen_and_the_secret_is_not_repeated(at: int, letter: str) -> None:
    damaged = TEXT[:at] + letter + TEXT[at + 1 :]
    if damaged.strip() == TEXT:
        return
    with pytest.raises(InputError) as refused:
        from_text(damaged)
    assert TEXT[10:20] not in str(refused.value)


@given(st.binary(max_size=200))
def test_any_text_is_an_invitation_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(CompeftError):
        from_text(f"cpi1_{data.decode('latin-1')}")


def test_a_secret_is_not_shown_by_accident() -> None:
    assert MADE.secret.hex() not in repr(MADE)
    assert repr(MADE.secret) not in repr(MADE)


def stored(**changes: object) -> Invited:
    values: dict[str, object] = {"number": MADE.number.hex(), "secret_digest": MADE.secret_digest, "name": "n", "role": "edge"}
    return Invited(**(values | {"expires_at_ms": 100} | changes))  # type: ignore[arg-type]


def request(secret: bytes = MADE.secret, keyid: str = "k") -> ep.EnrolmentRequest:
    return ep.EnrolmentRequest(invitation=MADE.number, secret=secret, keyid=keyid)


@pytest.mark.parametrize(
    ("invited", "asked", "now_ms", "word"),
    [
        (stored(), request(), 100, ""),
        (None, request(), 0, "unknown"),
        (stored(), request(b"\x09" * 32), 0, "wrong secret"),
        (stored(), request(MADE.secret + b"x"), 0, "wrong secret"),
        (stored(), request(b""), 0, "wrong secret"),
        (stored(withdrawn=True), request(), 0, "withdrawn"),
        (stored(), request(), 101, "expired"),
        (stored(used_by="other"), request(), 0, "used"),
        (stored(used_by="k"), request(), 0, ""),
        (stored(used_by="k"), request(), 101, "expired"),
    ],
)
def test_an_invitation_is_good_once_for_one_key_until_it_expires(
    invited: Invited | None, asked: ep.EnrolmentRequest, now_ms: int, word: str
) -> None:
    assert fault(invited, asked, now_ms) == word


@pytest.mark.parametrize(("text", "hours"), [("30m", 0.5), ("24h", 24), ("7d", 168), ("30d", 720)])
def test_validity_is_a_number_and_a_unit(text: str, hours: float) -> None:
    assert valid_ms(text) == hours * 3_600_000


@pytest.mark.parametrize("text", ["", "24", "0h", "31d", "1w", "-1h", "1.5h", "99999999h"])
def test_a_validity_without_end_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="30m, 24h or 7d"):
        valid_ms(text)


def test_attempts_are_counted_by_host_and_in_all_and_start_anew_after_the_window() -> None:
    throttle = Throttle(each=2, total=3, window_ms=1000)
    throttle.take("a", 5000)
    throttle.take("a", 5100)
    with pytest.raises(BusyError, match="again in 1 s"):
        throttle.take("a", 5200)
    throttle.take("b", 5300)
    with pytest.raises(BusyError):
        throttle.take("c", 5999)
    throttle.take("a", 6000)
