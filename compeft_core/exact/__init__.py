"""The exact-delta codec: the words of a checkpoint that changed since another, coded without loss.

blob = encode_exact(old, new)
new = decode_exact(blob, old)
"""

from compeft_core.exact.delta import check_exact, decode_exact, encode_exact

__all__ = ["check_exact", "decode_exact", "encode_exact"]
