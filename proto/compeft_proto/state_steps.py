"""The state of each version of an expert, computed step by step and checked against the signed digests."""

import numpy as np

from compeft_core import Layout, State, Vector, add_to, seeded_state, state_of
from compeft_core.errors import FormatError, InputError, NotFiniteError
from compeft_proto.convert import read_payload
from compeft_proto.errors import WrongBaseError
from compeft_proto.snapshot import decode_snapshot, encode_snapshot
from compeft_proto.v1 import expert_pb2 as pb

COMPACT = "compact"
"""The coding of `compeft_proto.snapshot` against zeros."""


def initial_state(genesis: pb.Genesis, layout: Layout, snapshot: bytes = b"") -> State:
    """The state of version 0: computed from its seed, or read from the bytes of its snapshot.

    Errors: FormatError if the manifest is wrong; NotFiniteError; WrongBaseError if the state is
    not the one the manifest names.
    """
    seeded = genesis.WhichOneof("initial") == "seeded"
    vector = seeded_state_of(genesis, layout) if seeded else _unpacked(genesis, layout, snapshot)
    if not np.isfinite(vector).all():
        raise NotFiniteError(f"{genesis.expert} version 0 holds NaN or infinity")
    state = state_of(layout, vector)
    check_state(genesis.expert, 0, genesis.state_digest, state)
    return state


def pack_snapshot(vector: Vector) -> tuple[str, bytes]:
    """The coding and the bytes by which an initial state travels whole, without loss: the smaller of COMPACT and plain float32.

    A float32 that was a bfloat16 or a float16 has 13 or more zero bits, and LoRA's B is zero: both cost next to nothing. Random float32
    values save about a tenth, from their exponents.
    """
    plain, packed = vector.astype("<f4").tobytes(), encode_snapshot(vector, np.zeros_like(vector))
    return (COMPACT, packed) if len(packed) < len(plain) else ("", plain)


def _unpacked(genesis: pb.Genesis, layout: Layout, data: bytes) -> Vector:
    """The state in a genesis' snapshot. Errors: FormatError, NotFiniteError."""
    coding = genesis.snapshot.coding
    if coding == COMPACT:
        return decode_snapshot(data, np.zeros(layout.size, np.float32))
    if coding:
        raise FormatError(f"genesis of {genesis.expert} has a snapshot coded by {coding[:20]!a}, known is {COMPACT!r}")
    return _snapshot(genesis.expert, layout, data)


def reference_of(genesis: pb.Genesis, layout: Layout) -> Vector:
    """What snapshots of an expert are coded against, float32 of shape (layout.size,): its seeded state, else zeros.

    Errors: FormatError if seed or bounds in the genesis are invalid.
    """
    if genesis.WhichOneof("initial") != "seeded":
        return np.zeros(layout.size, np.float32)
    return seeded_state_of(genesis, layout)


def seeded_state_of(genesis: pb.Genesis, layout: Layout) -> Vector:
    """The seeded state that a genesis names, float32 of shape (layout.size,). Errors: FormatError if seed or bounds are invalid."""
    try:
        return seeded_state(layout, genesis.seeded.seed, list(genesis.seeded.bounds))
    except InputError as error:
        raise FormatError(f"genesis of {genesis.expert}: {error}") from error


def next_state(manifest: pb.VersionManifest, layout: Layout, state: State, payload: bytes, workers: int = 1) -> State:
    """The state that one version leads to, from its parent `state`; `state` itself is left alone. A version that is a snapshot needs
    no parent: any `state` will do.

    Errors: WrongBaseError if the manifest builds on another state or leads to another one than it names; NotFiniteError; FormatError.
    """
    if manifest.snapshot:
        vector = _snapshot(manifest.expert, layout, payload)
    else:
        check_state(manifest.expert, manifest.version - 1, manifest.parent_state_digest, state)
        vector = state.vector.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # looked at just below
            add_to(read_payload(manifest.coding, payload, layout, workers), vector, workers=workers)
    if not np.isfinite(vector).all():
        raise NotFiniteError(f"{manifest.expert} version {manifest.version} holds NaN or infinity: ask the aggregator's operator")
    following = state_of(layout, vector)
    check_state(manifest.expert, manifest.version, manifest.state_digest, following)
    return following


def _snapshot(expert: str, layout: Layout, data: bytes) -> Vector:
    if len(data) != 4 * layout.size:
        raise FormatError(f"snapshot of {len(data)} bytes, the layout needs {4 * layout.size}")
    state = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(state).all():
        raise NotFiniteError(f"snapshot of {expert} holds NaN or infinity")
    return state


def check_state(expert: str, version: int, expected: bytes, state: State) -> None:
    """Hold `state` against the digest that was signed. Errors: WrongBaseError that names the version and both."""
    if state.digest != expected:
        raise WrongBaseError(f"{expert} version {version} has state {state.digest.hex()[:16]}, signed is {expected.hex()[:16]}")
