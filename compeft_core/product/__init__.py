"""The product-space codec: a low-rank expert coded by its product dW = scale * left @ right, module by module.

docs/product-format.md is normative for the bytes. `encode_product` chooses what to send (free to change), `parse_product` and
`decode_product` read it (fixed): integers times powers of two and one float32 number a component, the same bits on every machine.

    encoded = encode_product([LowRank(b, a, alpha / r)], ProductSettings(budget=4000))
    [(left, right)] = decode_product(encoded.blob, [(b.shape[0], a.shape[1])])
"""

from compeft_core.product.blob import check_product, decode_product, parse_product, write_product
from compeft_core.product.encode import ModuleFacts, ProductEncoded, ProductSettings, encode_product
from compeft_core.product.low_rank import LowRank, low_rank_of
from compeft_core.product.symbols import Factors, ProductLimits, ProductSymbols, factors_of

__all__ = [
    "Factors",
    "LowRank",
    "ModuleFacts",
    "ProductEncoded",
    "ProductLimits",
    "ProductSettings",
    "ProductSymbols",
    "check_product",
    "decode_product",
    "encode_product",
    "factors_of",
    "low_rank_of",
    "parse_product",
    "write_product",
]
