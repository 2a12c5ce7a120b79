"""Updates: one client's contribution to a round. Accepted ones are answered by a receipt and merged when the round closes."""

from collections.abc import Sequence
from dataclasses import replace

from compeft_proto import envelope as dsse
from compeft_proto.base_model import NO_BASE_MODEL
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.message_kind import MessageKind, Offer, Record
from compeft_server.aggregation.private_rounds import check_update
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.domain import admission
from compeft_server.domain.admission import Situation, weight_of
from compeft_server.domain.records import Round, Submission, Transfer

UpdateOffer = Offer[pb.UpdateManifest, None]


class UpdateKind(MessageKind[pb.UpdateManifest, None]):
    """Updates of open rounds. Many are recorded side by side, one of a member at a time."""

    payload_type = dsse.UPDATE
    exclusive = False

    def refs(self, message: pb.UpdateManifest) -> Sequence[pb.ChunkRef]:
        """The chunks of its payload."""
        return message.chunks

    def admit(self, offer: UpdateOffer) -> Envelope | Record[None]:
        """Steps 5 and 6. Errors: those of `admission.admit_update`."""
        situation = self._situation(offer)
        same = admission.admit_update(offer.message, situation, self._parts.now_ms(), self._parts.limits)
        if same is not None:
            return Envelope.FromString(same.receipt)
        if situation.joins is not None:
            joined = situation.joins
            check_update(self._parts.ledger.private.round(joined.expert, joined.run, joined.round), offer.message)
        return lambda _: self._accept(offer, situation.joins)

    def check(self, offer: UpdateOffer, payload: Chunked) -> None:
        """Step 7. What a payload encodes is kept in memory for the merge. Errors: those of `admission.admit_payload`."""
        log = self._parts.log
        encoded = admission.admit_payload(offer.message, payload, log.expert(offer.message.expert), self._parts.limits)
        if encoded is not None:
            log.keep(offer.digest, encoded)

    def described(self, transfer: Transfer, message: pb.UpdateManifest) -> Transfer:
        """The round it names, and the version that this round leads to."""
        return replace(transfer, expert=message.expert, run=message.run, round=message.round, version=message.base_version + 1)

    def parameters(self, message: pb.UpdateManifest, _answer: Envelope) -> int:
        """Those of its coding."""
        return message.coding.ternary_size + message.coding.dense_size

    def _situation(self, offer: UpdateOffer) -> Situation:
        update, member, ledger, log = offer.message, offer.member, self._parts.ledger, self._parts.log
        named = ledger.standing(update.expert, update.run, update.round, member.public.keyid, offer.digest)
        expert, found, joins, other = log.find(update.expert), named.round, self._joined(named.round), named.other
        if named.same is not None:
            joins = ledger.round(named.same.expert, named.same.run, named.same.round)
        elif joins is not None and joins is not found:
            other = ledger.standing(joins.expert, joins.run, joins.round, member.public.keyid, offer.digest).other
        return Situation(
            member=member,
            expert=expert,
            round=found,
            joins=joins,
            base_state_digest=log.state_digest(update.expert, found.base_version) if found else b"",
            same=named.same,
            other=other,
            accepted_sequence=named.accepted_sequence,
            policy=self._parts.access.decide(member.name, member.role, update.expert, "publish", update.base_version),
            base_model=log.base_model(expert) if expert else NO_BASE_MODEL,
        )

    def _joined(self, found: Round | None) -> Round | None:
        """The round that an update of round `found` would be merged in: the same while it is open, then the run's open one, if that
        takes late updates, and nothing but rounds of this run has led from the one's base to the other's.
        """
        if found is None or found.closed_at_ms is None:
            return found
        rounds = self._parts.ledger.rounds(found.expert)
        takes = next((r for r in rounds if r.run == found.run and r.closed_at_ms is None and r.max_staleness > 0), None)
        if takes is None:
            return found
        since = self._parts.ledger.versions(found.expert, found.base_version, takes.base_version)
        return takes if all(v.run == found.run for v in since) else found

    def _accept(self, offer: UpdateOffer, joins: Round | None) -> Envelope:
        update, now = offer.message, self._parts.now_ms()
        number = joins.round if joins else update.round
        receipt = pb.Receipt(
            update_digest=offer.digest,
            expert=update.expert,
            run=update.run,
            round=number,
            keyid=update.keyid,
            sequence=update.sequence,
            payload_bytes=sum(ref.size for ref in offer.refs),
            accepted_at_ms=now,
        )
        sealed = dsse.seal(self._parts.key, dsse.RECEIPT, receipt)
        self._parts.ledger.accept(
            Submission(
                update_digest=offer.digest,
                expert=update.expert,
                run=update.run,
                round=number,
                keyid=update.keyid,
                sequence=update.sequence,
                weight=weight_of(update),
                envelope=offer.envelope,
                receipt=sealed.SerializeToString(),
                accepted_at_ms=now,
            )
        )
        return sealed
