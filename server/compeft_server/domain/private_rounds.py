"""Private rounds and what members contributed to them, as plain values."""

from dataclasses import dataclass

from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto.privacy_terms import privacy_from_text, privacy_to_text


@dataclass(frozen=True, slots=True)
class PrivateRound:
    """The terms of one round as they were opened, and the clip in force; `asked` is how many clients its conductor asked.

    seed: 32 secret bytes that its noise was made from, empty before a central round is merged. next_clip: what the clip becomes after it.
    """

    expert: str
    run: str
    round: int
    clip: float
    terms: str
    data: str
    asked: int
    seed: bytes = b""
    next_clip: float = 0.0

    @property
    def privacy(self) -> ClientPrivacy:
        """The terms. Errors: FormatError, InputError if the ledger was altered."""
        found = privacy_from_text(self.terms)
        assert found is not None  # noqa: S101  # the constructor below writes no empty terms
        return found


def private_round(expert: str, run: str, number: int, clip: float, terms: ClientPrivacy, asked: int) -> PrivateRound:
    """A private round that is being opened."""
    return PrivateRound(expert, run, number, clip, privacy_to_text(terms), terms.data, asked)


@dataclass(frozen=True, slots=True)
class MemberRound:
    """One private round that a member contributed to: noise multiplier and sensitivity (in clips) of what was released of it.

    released: what the noise covers has left its owner: a central round's version, or a local round's update.
    """

    member: str
    expert: str
    run: str
    round: int
    noise_multiplier: float
    sensitivity: float
