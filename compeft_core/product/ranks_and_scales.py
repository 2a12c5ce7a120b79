"""What a stream begins with: the rank of each module, and the scale code of each component. Section 4 of docs/product-format.md."""

from compeft_core.format.arithmetic_coder import Octets
from compeft_core.parallel import int64, kernel
from compeft_core.product.model import INVALID, NO_ROOM, NONE, RANK, SCALE, Coder, Ints, decide
from compeft_core.product.symbols import MAX_SCALE, MIN_SCALE


@kernel
def code_ranks(
    ranks: Ints,
    rows: Ints,
    columns: Ints,
    same: Ints,
    most: int,
    logits: Ints,
    ages: Ints,
    coder: Coder,
    stream: Octets,
    decoding: bool,
) -> Coder:
    """Code the number of components of each module, unary. same[i]: the module before i of the same shape, or -1. INVALID when a module
    has more components than rows or columns, or all of them more than `most` entries.
    """
    before, entries = 0, 0
    for i in range(ranks.size):
        near = ranks[same[i]] if same[i] >= 0 else 0
        count = 0
        while True:
            step = min(count, 7)
            a = RANK + 3 * step + min(max(near - count + 1, 0), 2)
            b = RANK + 24 + 3 * step + min(max(before - count + 1, 0), 2)
            more, coder = decide(int64(ranks[i] > count), a, b, logits, ages, coder, stream, decoding)
            if more == 0:
                break
            count += 1
            entries += rows[i] + columns[i]
            if count > min(rows[i], columns[i]) or entries > most or (decoding and coder[3] > stream.size):
                return coder[0], coder[1], coder[2], INVALID
        ranks[i] = count
        before = count
    return coder


@kernel
def code_scales(scales: Ints, ranks: Ints, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool) -> Coder:
    """Code the scale codes: each as the difference to the one before it in its module, the first to the first of the module before."""
    first, c = 0, 0
    for i in range(ranks.size):
        before = first
        for j in range(ranks[i]):
            base = SCALE + 36 * int64(j > 0)
            delta, coder = _code_difference(scales[c] - before, base, logits, ages, coder, stream, decoding)
            before += delta
            if before < MIN_SCALE or before > MAX_SCALE or (not decoding and before != scales[c]):
                return coder[0], coder[1], coder[2], INVALID
            if coder[3] < 0 or (decoding and coder[3] > stream.size):
                return coder[0], coder[1], coder[2], NO_ROOM
            scales[c] = before
            c += 1
            if j == 0:
                first = before
    return coder


@kernel
def _code_difference(
    value: int, base: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """A number in -2047..2047: how many bits |value| has, unary; those below the highest; the sign, if it is not 0.

    Example: -6 has 3 bits: "more" in the contexts 0, 1, 2, "no more" in 3, then the bits 1 (in context 12 + 3) and 0, then "negative".
    """
    size, magnitude = 0, abs(value)
    while size < 11:
        more, coder = decide(int64(magnitude >> size != 0), base + size, NONE, logits, ages, coder, stream, decoding)
        if more == 0:
            break
        size += 1
    if size == 0:
        return 0, coder
    got = 1
    for i in range(size - 2, -1, -1):
        context = base + 12 + size if i == size - 2 else NONE
        bit, coder = decide((magnitude >> i) & 1, context, NONE, logits, ages, coder, stream, decoding)
        got = got << 1 | bit
    negative, coder = decide(int64(value < 0), base + 24 + size, NONE, logits, ages, coder, stream, decoding)
    return (-got if negative else got), coder
