"""Prints whether kernels are compiled, and the SHA-256 of what golden vectors decode to; with `--without-numba`, as where numba is not
installed. Started by tests/kernels/test_kernels.py.
"""

import hashlib
import sys
from pathlib import Path

if "--without-numba" in sys.argv:
    sys.modules["numba"] = sys.modules["llvmlite"] = None  # type: ignore[assignment]  # as if neither were there

import numpy as np

from compeft_core import CompeftError, add_to, parse
from compeft_core.parallel import COMPILED
from compeft_core.product import decode_product
from compeft_proto.expert_file import check_file
from tests.vectors import product

MOST_PARAMETERS = 20_000
"""Vectors of more take long in plain Python."""
ROOT = Path(__file__).parents[1]


def digest() -> str:
    """Of all golden vectors: what each ternary one decodes to or that it is refused, the factors of each product, and an expert file's
    manifest, after a check of its payloads.
    """
    hashed = hashlib.sha256()
    for path in sorted((ROOT / "vectors").glob("*.txt")):
        hashed.update(_ternary(bytes.fromhex(path.read_text().partition("\n\n")[2])))
    for _, shapes, blob in product.valid().values():
        for pair in decode_product(blob, shapes):
            hashed.update(pair.left.tobytes() + pair.right.tobytes())
    golden = ROOT / "client" / "packing" / "golden.expert"
    hashed.update(str(check_file(golden.read_bytes(), golden.name, 10**6).size).encode())
    return hashed.hexdigest()


def _ternary(blob: bytes) -> bytes:
    try:
        encoded = parse(blob, max_size=MOST_PARAMETERS)
    except CompeftError as error:
        return type(error).__name__.encode()
    state = np.zeros(encoded.size, np.float32)
    add_to(encoded, state, 0.7)
    return state.tobytes()


if __name__ == "__main__":
    print("compiled" if COMPILED else "interpreted", digest())
