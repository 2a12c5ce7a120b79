"""Conversions between signed messages and the values of core, both ways, and between an update and its payload.

Invariant: a message is never trusted. Sizes are capped, and the facts that a manifest repeats about its payload must agree with the
payload. `x_to_proto(x_from_proto(m))` is `m`: each value has one message.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import cast, get_args

from compeft_core import (
    Codec,
    Compression,
    Contents,
    Encoded,
    Layout,
    MergeParameters,
    ScaleRule,
    Tensor,
    Update,
    Vector,
    check,
    encoding_of,
    parse,
    shapes_of,
)
from compeft_core.budget import filled
from compeft_core.compress import Granularity, compress
from compeft_core.errors import FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.format.header import Blob
from compeft_core.layout import MAX_TENSORS, Kind
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.front_coding import FrontCoded, front_code, front_decode
from compeft_proto.v1 import expert_pb2 as pb

CODECS = get_args(Codec)
CONTEXT_SIZE = 2**25
"""Most ternary parameters that are coded by `context`, the smallest codec; above, its time outweighs the bytes that it saves."""


def layout_to_proto(layout: Layout) -> pb.Layout:
    """A layout as a message: the one message for it."""
    rows = front_code([t.name for t in layout.tensors])
    places: dict[tuple[int, ...], int] = {}
    shape = [places.setdefault(t.shape, len(places)) for t in layout.tensors]
    return pb.Layout(
        ternary=sum(t.kind == "ternary" for t in layout.tensors),
        shared_prefix=[row.prefix for row in rows],
        shared_suffix=[row.suffix for row in rows],
        middle=[row.middle for row in rows],
        shapes=[pb.Shape(sizes=sizes) for sizes in places],
        shape=shape,
    )


def layout_from_proto(message: pb.Layout) -> Layout:
    """A message as a layout. Errors: FormatError if it is invalid, or not the one message for its layout; LimitError."""
    count = len(message.middle)
    if count > MAX_TENSORS:
        raise LimitError(f"manifest's layout has {count} tensors, the cap is {MAX_TENSORS}")
    if not count == len(message.shared_prefix) == len(message.shared_suffix) == len(message.shape):
        raise FormatError(f"manifest's layout has {count} names, its other columns are longer or shorter")
    if message.ternary > count:
        raise FormatError(f"manifest's layout has {message.ternary} ternary tensors of {count}")
    names = front_decode(map(FrontCoded, message.shared_prefix, message.shared_suffix, message.middle))
    shapes = _shapes(message)
    ternary: list[Kind] = ["ternary"] * message.ternary
    dense: list[Kind] = ["dense"] * (count - message.ternary)
    try:
        return Layout(tuple(map(Tensor, names, shapes, ternary + dense)))
    except InputError as error:
        raise FormatError(f"manifest's {error}") from error


def compression_to_proto(compression: Compression) -> pb.Compression:
    """Compression settings as a message."""
    return pb.Compression(
        density=compression.density,
        scale_rule=compression.scale,
        factor=compression.factor,
        granularity=compression.granularity,
    )


def compression_from_proto(message: pb.Compression) -> Compression:
    """A message as compression settings. Errors: InputError if out of range or of an unknown name."""
    return compression_of(message.density, message.scale_rule, message.factor, message.granularity)


def compression_of(density: float, scale: str, factor: float, granularity: str = "vector") -> Compression:
    """Compression settings from unchecked strings. Errors: InputError if out of range or of an unknown name."""
    return Compression(density, cast(ScaleRule, scale), factor, cast(Granularity, granularity))


def parameters_to_proto(parameters: MergeParameters) -> pb.MergeParameters:
    """Merge parameters as a message."""
    return pb.MergeParameters(**asdict(parameters))


def parameters_from_proto(message: pb.RoundClosing | pb.VersionManifest) -> MergeParameters:
    """The merge parameters in a message, the usual ones if it has none. Errors: InputError if one is out of range."""
    if not message.HasField("merge_parameters"):
        return MergeParameters()
    found = message.merge_parameters
    return MergeParameters(**{f.name: getattr(found, f.name) for f in fields(MergeParameters)})


def optimizer_to_proto(optimizer: ServerOptimizer) -> pb.ServerOptimizer:
    """A server optimizer as a message."""
    return pb.ServerOptimizer(**asdict(optimizer))


def optimizer_from_proto(message: pb.RoundClosing | pb.VersionManifest) -> ServerOptimizer:
    """The optimizer that a message names; FedAvg at rate 1 if it names none. Errors: InputError if out of range or of an unknown name."""
    if not message.HasField("optimizer"):
        return ServerOptimizer()
    o = message.optimizer
    return ServerOptimizer(o.name, o.learning_rate, o.momentum, o.second, o.tau)


def coding_of(encoded: Encoded, compression: Compression) -> pb.Coding:
    """The facts about a payload that its manifest states."""
    return pb.Coding(
        codec=encoded.codec,
        compression=compression_to_proto(compression),
        ternary_size=encoded.ternary_size,
        dense_size=encoded.dense_size,
        kept=encoded.count,
        scales=encoded.scales.tolist(),
    )


def codec_of(name: str) -> Codec:
    """A codec from an unchecked string. Errors: InputError."""
    if name not in CODECS:
        raise InputError(f"invalid codec {name[:40]!r}: expected one of {', '.join(CODECS)}")
    return cast(Codec, name)


def payload_of(layout: Layout, update: Update, codec: Codec = "context", workers: int = 1) -> Encoded:
    """The encoding of an update by `codec`; by `rice` instead of `context` above CONTEXT_SIZE ternary parameters."""
    if codec != "context":
        return encoding_of(update, codec=codec, workers=workers)
    if layout.ternary_size > CONTEXT_SIZE:
        return encoding_of(update, workers=workers)
    return encoding_of(update, codec="context", shapes=shapes_of(layout), workers=workers)


def coded(
    layout: Layout, vector: Vector, asked: Compression, codec: Codec, workers: int = 1, most_bytes: int = 0
) -> tuple[Compression, Encoded]:
    """The payload of a flat float32 vector, and the settings used: as `asked`, or at the highest lower density at which the payload
    takes no more than `most_bytes` (0: no limit). Errors: those of `compeft_core.compress`, and of `compeft_core.budget.filled`.
    """

    def make(settings: Compression) -> Encoded:
        return payload_of(layout, compress(layout, vector, settings, workers=workers), codec, workers)

    if not most_bytes:
        return asked, make(asked)
    return filled(make, lambda encoded: len(encoded.blob), asked, layout.ternary_size, layout.dense_size, most_bytes)


def read_payload(coding: pb.Coding, blob: bytes, layout: Layout, workers: int = 1) -> Encoded:
    """Decode-check `blob` and hold it against the manifest and the layout.

    Errors: FormatError if malformed, or if the manifest states other counts; LayoutMismatchError; NotFiniteError if the manifest
    names a scale that is NaN or infinite.
    """
    _check_claimed(coding)
    encoded = parse(blob, max_size=layout.size, workers=workers)
    _check_contents(coding, encoded.contents, layout)
    return encoded


def check_payload(coding: pb.Coding, blob: Blob, layout: Layout) -> None:
    """As `read_payload`, for bytes that need not be in memory; none are kept. Errors: as `read_payload`, and those of `blob`."""
    _check_claimed(coding)
    _check_contents(coding, check(blob, max_size=layout.size), layout)


def _check_claimed(coding: pb.Coding) -> None:
    if not all(math.isfinite(s) for s in coding.scales):
        raise NotFiniteError("manifest names a scale that is NaN or infinite")


def _check_contents(coding: pb.Coding, contents: Contents, layout: Layout) -> None:
    found, expected = (contents.ternary_size, contents.dense_size), (layout.ternary_size, layout.dense_size)
    if found != expected:
        raise LayoutMismatchError(f"payload has {found[0]} ternary and {found[1]} dense parameters, the layout {expected}")
    claimed = (coding.codec, coding.ternary_size, coding.dense_size, coding.kept, list(coding.scales))
    actual = (contents.codec, *found, contents.count, contents.scales.tolist())
    if claimed != actual:
        raise FormatError(f"manifest states coding {_short(claimed)}, its payload has {_short(actual)}")


def metrics_to_proto(metrics: Iterable[tuple[str, float]]) -> list[pb.Metric]:
    """Named numbers as messages, sorted by name."""
    return [pb.Metric(name=name, value=value) for name, value in sorted(metrics)]


def _shapes(message: pb.Layout) -> list[tuple[int, ...]]:
    """Each tensor's shape. Errors: FormatError unless the table holds each shape used once, in order of first use."""
    table = [tuple(shape.sizes) for shape in message.shapes]
    used = list(dict.fromkeys(message.shape))
    if used != list(range(len(table))) or len(set(table)) != len(table):
        raise FormatError(f"manifest's layout has a table of {len(table)} shapes that is not in order of first use")
    return [table[place] for place in message.shape]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
