"""A payload in a store, read where it is needed: its chunks are checked one by one as they are reached, and one at a time is held."""

from collections.abc import Callable, Container, Sequence
from io import BytesIO

from compeft_proto.chunk_refs import CHUNK_BYTES, check_chunk
from compeft_proto.v1 import expert_pb2 as pb


class Chunked:
    """A `Blob` (compeft_core.format.header) over chunks; `read` gets one by its SHA-256. Fast for whoever reads in order. Those of
    `checked`
    were held against their digest a moment ago, by the same call.

    Errors of any part: those of `read`; ChunkMismatchError.
    """

    def __init__(self, refs: Sequence[pb.ChunkRef], read: Callable[[bytes], bytes], checked: Container[bytes] = ()) -> None:
        self._refs, self._read, self._checked = refs, read, checked
        self._size = sum(ref.size for ref in refs)
        self._at, self._chunk = -1, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        number = start // CHUNK_BYTES
        first = number * CHUNK_BYTES
        if stop <= first + CHUNK_BYTES:
            return self._of(number)[start - first : stop - first] if start < stop else b""
        joined = BytesIO()  # joining the pieces would make two copies
        for at in range(first, stop, CHUNK_BYTES):
            joined.write(self._of(at // CHUNK_BYTES)[max(0, start - at) : stop - at])
        return joined.getvalue()

    def _of(self, number: int) -> bytes:
        if number != self._at:
            ref = self._refs[number]
            chunk = self._read(ref.sha256)
            known = ref.sha256 in self._checked and len(chunk) == ref.size
            self._at, self._chunk = number, chunk if known else check_chunk(ref, chunk)
        return self._chunk
