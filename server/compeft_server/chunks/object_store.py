"""A store in a bucket: S3 and what speaks it, Google Cloud Storage, Azure, through `obstore`. Chunks in the bucket, parts on disk.

An object is there, whole and durable, when the bucket has answered; nothing else is assumed of it. Its newest claim is its time of
modification: a claim of an object older than CLAIM_SLACK_MS writes it again. Parts are staged on the machine that receives them,
so a client that goes on at another replica sends the broken chunk again.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import structlog
from obstore.exceptions import BaseError
from obstore.store import ObjectStore as Bucket
from obstore.store import from_url

from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.errors import UnreachableError
from compeft_server.chunks.partial_uploads import Parts
from compeft_server.chunks.store import CLAIM_SLACK_MS, StoredChunk, checked, in_parts, missing

log = structlog.get_logger()
SCHEMES = ("s3", "gs", "az")
"""Buckets that are durable when they answer. `file` is not among them: obstore does not sync; the directory store does."""
PLAIN_HTTP = "AWS_ALLOW_HTTP"


def open_bucket(url: str) -> Bucket:
    """The bucket of a URL such as `s3://name/prefix`; credentials and endpoint come from the environment (AWS_*, GOOGLE_*, AZURE_*).

    Errors: InputError.
    """
    if url.partition("://")[0] not in SCHEMES:
        raise InputError(f"store {url[:60]!a}, it must begin with {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    try:
        plain = os.environ.get(PLAIN_HTTP, "").lower() == "true"
        return from_url(url, client_options={"allow_http": plain})
    except (BaseError, ValueError) as error:
        raise InputError(f"store {url[:60]!a} cannot be opened: {_first_line(error)}") from error


class ObjectStore:
    """Chunks as objects `ab/abcd...` of a bucket; parts in `staging`, a directory of this machine."""

    def __init__(self, bucket: Bucket, staging: Path) -> None:
        self._bucket, self._parts = bucket, Parts(staging)

    @property
    def partial(self) -> Path:
        """As `ChunkStore` specifies."""
        return self._parts.directory

    def has(self, sha256: bytes) -> bool:
        """As `ChunkStore` specifies."""
        found = self._head(sha256)
        if found is None:
            return False
        if found.claimed_at_ms < now_ms() - CLAIM_SLACK_MS:
            self._write(sha256, self.read(sha256))
        return True

    def put(self, data: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        sha256 = hashlib.sha256(data).digest()
        self._write(sha256, data)
        return sha256

    def read(self, sha256: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        try:
            return checked(sha256, bytes(self._bucket.get(_name(sha256)).bytes()))
        except FileNotFoundError:
            missing(sha256)
        except BaseError as error:
            raise _unreachable(error) from error

    def stream(self, sha256: bytes, offset: int) -> Iterator[bytes]:
        """As `ChunkStore` specifies."""
        yield from in_parts(self.read(sha256), offset)

    def received(self, sender: str, sha256: bytes) -> int:
        """As `ChunkStore` specifies."""
        return self._parts.received(sender, sha256)

    def append(self, sender: str, sha256: bytes, data: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.append(sender, sha256, data)

    def check(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.check(sender, sha256)

    def peek(self, sender: str, sha256: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        part = self._parts.read(sender, sha256)
        return self.read(sha256) if part is None else part

    def commit(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        part = self._parts.read(sender, sha256)
        if part is not None:
            self._write(sha256, part)
            self._parts.drop(sender, sha256)
        elif not self.has(sha256):
            missing(sha256)

    def drop(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.drop(sender, sha256)

    def chunks(self) -> Iterator[StoredChunk]:
        """As `ChunkStore` specifies. Objects of other names are not chunks, and are left alone."""
        try:
            for page in self._bucket.list():
                yield from (_stored(found) for found in page if _is_chunk(found["path"]))
        except (BaseError, FileNotFoundError) as error:
            raise _unreachable(error) from error

    def remove(self, sha256: bytes, claimed_before_ms: int) -> bool:
        """As `ChunkStore` specifies, but for a claim in the milliseconds between the look and the removal: buckets have no lock."""
        found = self._head(sha256)
        if found is None or found.claimed_at_ms >= claimed_before_ms:
            return False
        try:
            self._bucket.delete(_name(sha256))
        except BaseError as error:
            raise _unreachable(error) from error
        return True

    def remove_parts(self, touched_before_ms: int, dry_run: bool = False) -> int:
        """As `ChunkStore` specifies, of this machine's parts."""
        return self._parts.sweep(touched_before_ms, dry_run)

    def _head(self, sha256: bytes) -> StoredChunk | None:
        try:
            return _stored(self._bucket.head(_name(sha256)))
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise _unreachable(error) from error

    def _write(self, sha256: bytes, data: bytes) -> None:
        try:
            self._bucket.put(_name(sha256), data, use_multipart=False)
        except (BaseError, FileNotFoundError) as error:
            raise _unreachable(error) from error


def _name(sha256: bytes) -> str:
    return f"{sha256.hex()[:2]}/{sha256.hex()}"


def _is_chunk(path: str) -> bool:
    name = path.rpartition("/")[2]
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name) and path == f"{name[:2]}/{name}"


def _stored(found: Mapping[str, object]) -> StoredChunk:
    path, size, modified = found["path"], found["size"], found["last_modified"]
    if not isinstance(path, str) or not isinstance(size, int) or not isinstance(modified, datetime):
        raise TypeError(f"obstore describes an object as {found!a}")
    return StoredChunk(bytes.fromhex(path.rpartition("/")[2]), size, int(modified.timestamp() * 1000))


def _unreachable(error: Exception) -> UnreachableError:
    """What members hear names no host, bucket or port; the log does."""
    log.error("object store", error=_first_line(error))
    return UnreachableError("the aggregator's object store does not answer as it should: come back later")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]
