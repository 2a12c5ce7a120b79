"""An expert of either kind, by name, into a folder: what `compeft pull` does once and `compeft watch` again and again.

A package is unpacked as `compeft unpack` would; a composed expert becomes a PEFT directory. Everything is checked before it is written.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compeft_client.delivery.peft_directory import write_peft_directory
from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.package_client import Fetched, PackageClient
from compeft_client.identity.edge_config import Edge
from compeft_client.packing.pack import unpack
from compeft_core import state_digest
from compeft_core.errors import InputError
from compeft_proto.keys import PublicKey
from compeft_proto.name_checks import typed_name
from compeft_proto.sync_answer import Progress, no_progress


@dataclass(frozen=True, slots=True)
class Reference:
    """An expert's name, and at most one of: a version, a channel. Neither: the newest."""

    expert: str
    version: int | None = None
    channel: str = ""


@dataclass(frozen=True, slots=True)
class PullOptions:
    """Options of a delivery. publisher: nobody else's package; init: where a package was packed against, as for `unpack`;
    go_back: an older version than one that was here is fine.
    """

    publisher: PublicKey | None = None
    init: str | None = None
    go_back: bool = False


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was written. `digest` is the state digest, of a package its file's SHA-256; `publisher` is empty for a composed expert."""

    expert: str
    version: int
    digest: bytes
    parameters: int
    publisher: str


def reference_of(text: str) -> Reference:
    """`NAME`, `NAME@3` or `NAME@stable`. Errors: InputError."""
    name, at, place = text.partition("@")
    typed_name(name, "expert")
    if at and not place:
        raise InputError(f"{text!r} ends with @: write {name}@3 for a version, {name}@stable for a channel")
    if place.isascii() and place.isdigit():
        return Reference(name, version=int(place))
    return Reference(name, channel=place)


def deliver(
    edge: Edge, reference: Reference, folder: Path, options: PullOptions = PullOptions(), progress: Progress = no_progress
) -> Delivered:
    """Fetch an expert and write it to `folder`. Errors: those of `PackageClient.fetch`, `EdgeClient.sync` and `packing.unpack`."""
    with PackageClient(edge) as client:
        if client.newest(reference.expert, reference.version, reference.channel).package:
            return _unpacked(fetch_package(client, reference, options, progress), folder, options.init)
    return _composed(edge, reference, folder, options, progress)


def fetch_package(client: PackageClient, reference: Reference, options: PullOptions, progress: Progress = no_progress) -> Fetched:
    """The file of a package. Errors: those of `PackageClient.fetch`."""
    return client.fetch(
        reference.expert,
        reference.version,
        channel=reference.channel,
        publisher=options.publisher,
        go_back=options.go_back,
        progress=progress,
    )


def _unpacked(fetched: Fetched, folder: Path, init: str | None) -> Delivered:
    digest = hashlib.sha256(fetched.data).digest()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"{fetched.expert.replace('/', '~')}-{fetched.version}.expert"
        file.write_bytes(fetched.data)
        opened = unpack(file, folder, init=init, force=True)
    return Delivered(fetched.expert, fetched.version, digest, opened.manifest.size, fetched.publisher)


def _composed(edge: Edge, reference: Reference, folder: Path, options: PullOptions, progress: Progress) -> Delivered:
    if options.publisher is not None:
        raise InputError(f"{reference.expert} is composed in rounds: no one publisher signed it, --publisher does not apply")
    with EdgeClient(edge) as client:
        synced = client.sync(
            reference.expert,
            reference.version,
            channel=reference.channel,
            go_back=options.go_back or reference.version is not None,
            progress=progress,
        )
    write_peft_directory(folder, synced)
    return Delivered(synced.expert, synced.version, state_digest(synced.layout, synced.vector), synced.layout.size, "")
