"""Prints the SHA-256 of what the golden vectors decode to: started with other processor features by tests/e2e/test_other_machines.py."""

import hashlib

from compeft_core.product import decode_product
from tests.vectors import product


def digest(workers: int) -> str:
    """Of the factors, left before right, module by module."""
    hashed = hashlib.sha256()
    for _, shapes, blob in product.valid().values():
        for pair in decode_product(blob, shapes, workers=workers):
            hashed.update(pair.left.tobytes() + pair.right.tobytes())
    return hashed.hexdigest()


if __name__ == "__main__":
    print(digest(1), digest(2))
