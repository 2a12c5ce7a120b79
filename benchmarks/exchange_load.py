"""Clients of an aggregator for benchmarks and long tests: many connections in one process, everything signed beforehand, payloads
shared in memory, nothing but the exchange timed.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from compeft_core import Compression, Layout, compress, encoding_of, layout_of
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import CHUNK_BYTES
from compeft_proto.clock import now_ms
from compeft_proto.convert import coding_of, layout_from_proto
from compeft_proto.keys import SigningKey
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from tests.faults.site import Site
from tests.rounds.conftest import genesis

COMPRESSION = Compression(0.05, "norm")
PART_BYTES = 256 * 2**10


@dataclass(frozen=True, slots=True)
class Payload:
    """An encoding, and a stamp that makes each of its chunks another one for each client; the bytes are shared."""

    base: bytes
    coding: pb.Coding
    stamp: int = 0

    def chunk(self, number: int) -> bytes:
        """A chunk; its last dense parameter is the stamp, if it has one."""
        start = number * CHUNK_BYTES
        part = self.base[start : start + CHUNK_BYTES]
        if not self.stamp:
            return part
        at = len(part) - 4 + (len(self.base) - start - len(part)) % 2
        return part[:at] + (0x3F80 + self.stamp).to_bytes(2, "little") + part[at + 2 :]

    def refs(self) -> list[pb.ChunkRef]:
        """The references to its chunks, in order."""
        parts = (self.chunk(number) for number in range(-(-len(self.base) // CHUNK_BYTES)))
        return [pb.ChunkRef(sha256=hashlib.sha256(part).digest(), size=len(part)) for part in parts]


@dataclass(frozen=True, slots=True)
class Sealed:
    """An update ready to go: its sealed manifest, its payload and where its chunks are."""

    envelope: Envelope
    payload: Payload
    places: dict[bytes, int]


def small_layout(size: int) -> Layout:
    """A ternary layout of two matrices."""
    return layout_of({"a.lora_A": (16, size // 32), "a.lora_B": (size // 32, 16)})


def dense_layout(payload_bytes: int) -> Layout:
    """A layout whose payload has about this number of bytes, nearly all of them dense."""
    return layout_of({"a.lora_A": (8, 500), "head": (payload_bytes // 2000, 1000)}, dense=["head"])


def payload_of(layout: Layout, seed: int) -> Payload:
    """What a client might have trained, encoded by `rice`."""
    vector = np.random.default_rng(seed).standard_normal(layout.size, np.float32)
    encoded = encoding_of(compress(layout, vector, COMPRESSION))
    return Payload(encoded.blob, coding_of(encoded, COMPRESSION))


def publish(site: Site, layout: Layout, expert: str) -> tuple[pb.Genesis, pb.RoundStatement]:
    """A new expert with an open round."""
    first, conductor = genesis(layout, expert), site.conductor()
    conductor.publish(first)
    return first, conductor.open_round(expert, "run", 1, 3600.0)


def seal(key: SigningKey, first: pb.Genesis, opened: pb.RoundStatement, payload: Payload) -> Sealed:
    """An update by `key` for an opened round on version 0."""
    now, refs = now_ms(), payload.refs()
    update = pb.UpdateManifest(
        expert=first.expert,
        base_version=0,
        base_state_digest=first.state_digest,
        run=opened.run,
        round=opened.round,
        round_nonce=opened.round_nonce,
        keyid=key.keyid,
        base_model_digest=first.base_model_digest,
        layout_digest=layout_from_proto(first.layout).digest,
        adapter_config_digest=first.adapter_config_digest,
        coding=payload.coding,
        num_examples=100,
        issued_at_ms=now,
        expires_at_ms=now + 3_600_000,
        sequence=1,
        chunks=refs,
    )
    return Sealed(dsse.seal(key, dsse.UPDATE, update), payload, {ref.sha256: place for place, ref in enumerate(refs)})


async def submit(stub: rpc.ExpertExchangeStub, sealed: Sealed) -> None:
    """One submission."""
    call = stub.Submit()
    await call.write(xp.SubmitRequest(envelope=sealed.envelope))
    reply = await call.read()
    for wanted in reply.needed.chunks:
        chunk = sealed.payload.chunk(sealed.places[wanted.sha256])
        for at in range(wanted.offset, len(chunk), PART_BYTES):
            await call.write(xp.SubmitRequest(data=chunk[at : at + PART_BYTES]))
        assert (await call.read()).received == wanted.sha256
    if reply.HasField("needed"):
        reply = await call.read()
    assert reply.HasField("answer")
    await call.done_writing()
    await call.read()


def storm(site: Site, work: Sequence[Sequence[Sealed]]) -> float:
    """Each inner sequence is one client's submissions, one after the other; all clients at once. Seconds, connections made before."""
    return asyncio.run(_storm(site, work))


async def _storm(site: Site, work: Sequence[Sequence[Sealed]]) -> float:
    channels = [_channel(site) for _ in work]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))

    async def one(channel: grpc.aio.Channel, mine: Sequence[Sealed]) -> None:
        for sealed in mine:
            await submit(rpc.ExpertExchangeStub(channel), sealed)

    started = time.monotonic()
    await asyncio.gather(*(one(channel, mine) for channel, mine in zip(channels, work, strict=True)))
    seconds = time.monotonic() - started
    await asyncio.gather(*(channel.close() for channel in channels))
    return seconds


def _channel(site: Site) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    if site.client_tls is None:
        return grpc.aio.insecure_channel(site.address, options)
    tls = site.client_tls
    return grpc.aio.secure_channel(site.address, grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate), options)
