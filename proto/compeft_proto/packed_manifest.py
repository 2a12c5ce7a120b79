"""An expert's manifest as few bytes: raw deflate (RFC 1951) with a preset dictionary, which has what most manifests are made of.

The dictionary is `manifest.dict`: PEFT's model card and configuration as they are written when nobody edits them, and the layouts of common
models. It never changes: docs/expert-file.md names its SHA-256. So a manifest of 7 kB (SmolLM2, all linear layers) takes about 300 bytes.
"""

import pkgutil
import zlib
from functools import cache

from compeft_core.errors import FormatError, LimitError

TYPE = "application/vnd.compeft.expert.v2"
"""The payload type of an envelope around a packed manifest."""
MAX_MANIFEST_BYTES = 2**24
WINDOW = -15
"""Raw deflate, 32 KiB of history."""


@cache
def dictionary() -> bytes:
    """The preset dictionary."""
    return pkgutil.get_data("compeft_proto", "manifest.dict") or b""


def pack(message: bytes) -> bytes:
    """A serialised ExpertManifest, packed."""
    coder = zlib.compressobj(9, zlib.DEFLATED, WINDOW, 9, zlib.Z_DEFAULT_STRATEGY, dictionary())
    return coder.compress(message) + coder.flush()


def unpack(data: bytes) -> bytes:
    """The serialised ExpertManifest. Errors: FormatError if it is damaged or something follows it; LimitError above 16 MiB."""
    return inflate(data, MAX_MANIFEST_BYTES, dictionary())


def inflate(data: bytes, most: int, preset: bytes = b"") -> bytes:
    """Raw deflate, undone. Errors: FormatError if it is damaged or something follows it; LimitError if it makes more than `most` bytes."""
    coder = zlib.decompressobj(WINDOW, preset) if preset else zlib.decompressobj(WINDOW)
    try:
        found = coder.decompress(data, most + 1)
    except zlib.error as error:
        raise FormatError(f"{len(data)} deflated bytes are damaged") from error
    if len(found) > most:
        raise LimitError(f"{len(data)} deflated bytes make more than {most}")
    if not coder.eof or coder.unused_data:
        raise FormatError(f"{len(data)} deflated bytes are cut off, or something follows them")
    return found


def deflate(data: bytes) -> bytes:
    """Raw deflate without a dictionary."""
    coder = zlib.compressobj(9, zlib.DEFLATED, WINDOW, 9)
    return coder.compress(data) + coder.flush()
