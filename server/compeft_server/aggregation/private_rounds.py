"""Private rounds: what their opening must keep to, and the noise that closing them adds."""

from collections.abc import Sequence
from dataclasses import replace

from compeft_core.errors import FormatError, InputError
from compeft_core.privacy.clipping import Noise, noised_count
from compeft_core.privacy.terms import bit_noise, next_clip, value_noise
from compeft_proto.errors import PrivacySpentError, WrongBaseError
from compeft_proto.name_checks import check_name
from compeft_proto.privacy_terms import SALT_BYTES, FreshSeed, privacy_from_proto
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.private_rounds import PrivateRound, private_round
from compeft_server.ledger.ledger import Ledger
from compeft_server.privacy.account import check_bound


def admit_opening(ledger: Ledger, opening: pb.RoundOpening) -> PrivateRound | None:
    """The private round that a conductor opens, None if it is not private; the clip goes on from the expert's newest private round.

    Errors: InputError for terms out of range; PrivacySpentError if the bound leaves no further round, or an expert that had private rounds
    is to have one without noise.
    """
    before = ledger.private.rounds(opening.expert)
    if not opening.HasField("privacy"):
        if before:
            raise PrivacySpentError(
                f"{opening.expert} has {len(before)} private rounds, a round without noise would undo them: open it with "
                "Plan(privacy=...), or publish under another name"
            )
        return None
    terms = privacy_from_proto(opening.privacy)
    if terms.data:
        check_name(terms.data, "data")
    under_way = [found.privacy for found in ledger.private.under_way(terms.data, opening.expert)]
    bare = ledger.private.bare(terms.data, opening.expert)
    check_bound(opening.expert, terms, ledger.private.contributed(terms.data), bare, under_way)
    clips = [found.next_clip for found, _, _ in before if found.next_clip]
    clip = clips[-1] if clips and terms.target_quantile is not None else terms.clip
    return private_round(opening.expert, opening.run, opening.round, clip, terms, opening.asked)


def check_update(private: PrivateRound | None, update: pb.UpdateManifest) -> None:
    """Errors: FormatError if an update for a private round has no salt: then its client knew nothing of the terms."""
    if private is not None and (len(update.salt) != SALT_BYTES or update.weight != 1 or update.metrics):
        raise FormatError(
            f"round {update.round} is private, expected was an update with a salt, weight 1 and no metrics: upgrade this client's compeft"
        )


def completed(private: PrivateRound, updates: Sequence[pb.UpdateManifest], method: str, fresh: FreshSeed) -> PrivateRound:
    """A central round with its seed and the clip that follows. A local one needs neither. Errors: InputError for another method than
    the mean, for which no sensitivity is known.
    """
    terms = private.privacy
    if terms.where == "local":
        return private
    if method != "average":
        raise InputError(
            f"a private round merges by 'average', not by {method!r}: noise is fitted to how far one client moves a sum"
        )
    seed, bits = fresh(), bit_noise(terms, len(updates))
    within = noised_count(sum(update.within_clip for update in updates), bits, seed) if bits else 0.0
    return replace(private, seed=seed, next_clip=next_clip(terms, private.clip, within, len(updates)))


def merge_of(private: PrivateRound | None, clients: int) -> pb.PrivateMerge | None:
    """What a version's manifest says of its noise; None where the aggregator adds none."""
    if private is None or not private.seed:
        return None
    return pb.PrivateMerge(clip=private.clip, value_noise=value_noise(private.privacy, clients))


def noise_of(merge: pb.PrivateMerge | None, private: PrivateRound | None) -> Noise | None:
    """The noise that a manifest states, from the seed that the ledger keeps. Errors: WrongBaseError if the seed is gone."""
    if merge is None:
        return None
    if private is None or not private.seed:
        raise WrongBaseError("a version with noise cannot be recomputed: the ledger has no seed for its round")
    return Noise(merge.clip, merge.value_noise, private.seed)
