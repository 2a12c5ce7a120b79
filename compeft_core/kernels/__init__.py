"""Hot loops: compiled by numba where it can be imported, else run by Python. Both give the same bits."""

from typing import TYPE_CHECKING

from compeft_core.kernels import interpreted

if TYPE_CHECKING:
    from compeft_core.kernels.compiled import int64, kernel, load_word, magnitude_mask, ones, trailing_zeros, true_mask, uint64

    COMPILED = True
else:
    try:
        from compeft_core.kernels import compiled as chosen
    except ImportError:  # numba is not installed, or refuses the numpy that is
        chosen = interpreted
    COMPILED = chosen is not interpreted
    int64, uint64, kernel = chosen.int64, chosen.uint64, chosen.kernel
    trailing_zeros, ones, load_word = chosen.trailing_zeros, chosen.ones, chosen.load_word
    magnitude_mask, true_mask = chosen.magnitude_mask, chosen.true_mask

__all__ = ["COMPILED", "int64", "kernel", "load_word", "magnitude_mask", "ones", "trailing_zeros", "true_mask", "uint64"]
