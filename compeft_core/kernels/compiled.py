"""Kernels as machine code, by numba: the decorator, and single instructions that numba has no name for."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # ships no types
from numba import njit, types
from numba.extending import intrinsic

from compeft_core.kernels.interpreted import CHUNK, MAGNITUDE

F = TypeVar("F", bound=Callable[..., Any])

int64 = cast(Callable[[Any], int], np.int64)
uint64 = cast(Callable[[Any], Any], np.uint64)


def kernel(function: F) -> F:
    """Compile `function` on first call and cache it beside its file. No fast-math: float steps happen as written.

    numba's cache names the NamedTuple classes of a kernel's arguments, and reads that before it knows whether the file has changed. So
    such a class keeps its name and module, or leaves an alias: a machine with an older cache would fail instead of compiling again.
    """
    return cast(F, njit(cache=True, nogil=True)(function))


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast(Callable[..., Any], intrinsic(function))


@_intrinsic
def trailing_zeros(_typing: Any, word: Any) -> Any:
    """Number of zero bits below the lowest one of a uint64, as int64; 64 for zero."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@_intrinsic
def ones(_typing: Any, word: Any) -> Any:
    """Number of one bits of a uint64, as int64."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


@_intrinsic
def magnitude_mask(_typing: Any, bits: Any, index: Any, least: Any) -> Any:
    """Bit j of the uint64 says whether `bits[index + j]`, a float32 as uint32, has magnitude bits >= `least`; j < CHUNK."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = _load_chunk(context, builder, signature, arguments, 32)
        zeros = ir.Constant(words.type, [0] * CHUNK)
        lane = builder.insert_element(zeros, arguments[2], ir.Constant(ir.IntType(32), 0))
        magnitudes = builder.and_(words, ir.Constant(words.type, [MAGNITUDE] * CHUNK))
        return builder.bitcast(builder.icmp_unsigned(">=", magnitudes, builder.shuffle_vector(lane, lane, zeros)), ir.IntType(64))

    return types.uint64(bits, types.int64, types.uint32), codegen


@_intrinsic
def true_mask(_typing: Any, flags: Any, index: Any) -> Any:
    """Bit j of the uint64 says whether `flags[index + j]`, a bool, is true; j < CHUNK."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        octets = _load_chunk(context, builder, signature, arguments, 8)
        return builder.bitcast(builder.icmp_unsigned("!=", octets, ir.Constant(octets.type, [0] * CHUNK)), ir.IntType(64))

    return types.uint64(flags, types.int64), codegen


@_intrinsic
def load_word(_typing: Any, octets: Any, index: Any) -> Any:
    """The eight bytes from `octets[index]` on as a uint64, the first one lowest; the caller guarantees that they exist.

    One unaligned load instead of two aligned ones, two shifts and an or: a reader of short codes does little else.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(octets, types.int64), codegen


def _load_chunk(context: Any, builder: Any, signature: Any, arguments: Any, width: int) -> Any:
    """CHUNK items of `width` bits, from an index of a contiguous array on, as a vector; the caller guarantees that they exist."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    vector = ir.VectorType(ir.IntType(width), CHUNK)
    start = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
    return builder.load(start, align=width // 8)
