"""Geneses: version 0 of an expert that is composed in rounds, published by a conductor."""

from collections.abc import Sequence
from dataclasses import replace

from compeft_proto import envelope as dsse
from compeft_proto.convert import layout_from_proto
from compeft_proto.errors import ConflictError
from compeft_proto.state_steps import initial_state
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.message_kind import MessageKind, Offer, Record
from compeft_server.aggregation.sealed_version import next_manifest, sealed_version
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.domain import admission
from compeft_server.domain.records import Expert, Transfer

GenesisOffer = Offer[pb.Genesis, None]


class GenesisKind(MessageKind[pb.Genesis, None]):
    """Geneses, answered by the sealed version 0."""

    payload_type = dsse.GENESIS

    def refs(self, message: pb.Genesis) -> Sequence[pb.ChunkRef]:
        """The chunks of its snapshot; none of a seeded state."""
        return message.snapshot.chunks

    def admit(self, offer: GenesisOffer) -> Envelope | Record[None]:
        """Steps 5 and 6. Errors: ExpiredError, ForbiddenError, those of `admission.admit_genesis`; ConflictError if the name is taken."""
        genesis, limits, now = offer.message, self._parts.limits, self._parts.now_ms()
        admission.admit_time(genesis.issued_at_ms, genesis.issued_at_ms + limits.max_age_ms, now, limits)
        admission.admit_member(offer.member, genesis.keyid, "conductor")
        admission.admit_genesis(genesis, limits)
        self._parts.access.require_name(offer.member, genesis.expert)
        if self._parts.ledger.expert(genesis.expert) is not None:
            raise ConflictError(f"expert {genesis.expert!r} exists already: choose another name or continue it")
        return lambda _: self._create(genesis)

    def check(self, offer: GenesisOffer, payload: Chunked) -> None:
        """Step 7: seed or snapshot make the state that the genesis names. Errors: those of `initial_state`."""
        initial_state(offer.message, layout_from_proto(offer.message.layout), payload[:])

    def described(self, transfer: Transfer, message: pb.Genesis) -> Transfer:
        """The expert's name."""
        return replace(transfer, expert=message.expert)

    def _create(self, genesis: pb.Genesis) -> Envelope:
        expert = Expert(
            genesis.expert, genesis.base_model_digest, genesis.adapter_config_digest, layout_from_proto(genesis.layout)
        )
        manifest = next_manifest(expert, None, genesis.state_digest, self.refs(genesis), self._parts.now_ms())
        manifest.genesis.CopyFrom(genesis)
        first = sealed_version(self._parts.key, manifest)
        self._parts.ledger.create(expert, first)
        return Envelope.FromString(first.envelope)
