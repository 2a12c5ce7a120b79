"""ExpertResolver: model names of requests -> PEFT directories of verified experts, for serving engines. No engine is imported here.

    resolver = ExpertResolver(edge_of({"site": "/var/lib/compeft-edge"}), ResolverSettings(Path("/var/cache/compeft")))
    found = resolver.resolve("sentiment@stable")        # found.name "sentiment@7-1a2b3c4d", found.directory, found.adapter_id

A name is asked about at the aggregator unless that was done within `fresh_s` seconds: policy and retirement hold at once, and a
channel that was promoted leads to its new version with the next request. Where the aggregator is away, the last verified version
goes on, also after a restart; `ages` says for how long. What the aggregator refuses is refused here, by name.
"""

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compeft_client.delivery.peft_directory import write_peft_directory
from compeft_client.delivery.pull import PullOptions, Reference, fetch_package
from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.package_client import Newest, PackageClient
from compeft_client.identity.edge_config import Edge
from compeft_client.packing.pack import unpack
from compeft_client.serving.engine_fit import fit
from compeft_client.serving.expert_cache import ExpertCache
from compeft_client.serving.model_name import ModelName, adapter_id_of, fixed_name, model_name_of
from compeft_client.serving.resolver_values import (
    ByteCounter,
    Known,
    Resolved,
    ResolverCounts,
    ResolverSettings,
    read_known,
    save_known,
)
from compeft_client.serving.served_base import UNKNOWN_BASE, ServedBase, check_statements
from compeft_core.errors import CompeftError, InputError
from compeft_proto.clock import now_ms
from compeft_proto.errors import TransferError, UnknownExpertError
from compeft_proto.expert_manifest import ADAPTER
from compeft_proto.round_task import Origin
from compeft_proto.sync_answer import Progress

MOST_STEPS_BACK = 256
"""How many versions are looked through for a digest."""


class ExpertResolver:
    """Resolves names for one engine. Thread-safe: one transfer an expert at a time, others do not wait for it."""

    def __init__(self, edge: Edge, settings: ResolverSettings, base: ServedBase = UNKNOWN_BASE) -> None:
        self._settings, self._base = settings, base
        self.cache = ExpertCache(settings.cache, settings.max_bytes)
        self._edge = replace(edge, state=self.cache.folder / "state", patience_s=0.0)
        self.counts = ResolverCounts()
        self._lock, self._ask_lock = threading.Lock(), threading.Lock()
        self._expert_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._last = self.cache.folder / "last.json"
        self._known = read_known(self._last)
        self._asker: PackageClient | None = None
        self._away_until = 0.0

    def close(self) -> None:
        """Give connection and cache back."""
        with self._ask_lock:
            self._drop_asker()
        self.cache.close()

    def resolve(self, text: str) -> Resolved:
        """The expert that a request asks for, in the cache when this returns.

        Errors: InputError for an invalid name or an expert that the engine cannot serve; UnknownExpertError, ForbiddenError and the
        aggregator's other refusals; TransferError if it is away and no verified version is here; TrustError, FormatError.
        """
        name = model_name_of(text)
        with self._lock:
            self.counts.requests += 1
        try:
            known = self._leads_to(text, name)
            return self._held(name, known)
        except TransferError:
            raise
        except CompeftError:
            with self._lock:
                self.counts.refused += 1
            raise

    @property
    def ages(self) -> Mapping[str, tuple[int, float]]:
        """Name as it was asked for -> version served, and seconds since the aggregator confirmed it."""
        with self._lock:
            known = dict(self._known)
        now = now_ms()
        return {text: (one.version, max(0.0, (now - one.confirmed_ms) / 1000)) for text, one in known.items()}

    def _leads_to(self, text: str, name: ModelName) -> Known:
        with self._lock:
            known = self._known.get(text)
        now = time.monotonic()
        if known and known.asked_s and now - known.asked_s < self._settings.fresh_s:
            return known
        if now < self._away_until and known:
            return self._counted_away(known)
        try:
            found = self._asked(name)
        except TransferError:
            self._away_until = time.monotonic() + self._settings.away_s
            if known is None:
                raise
            return self._counted_away(known)
        except CompeftError:
            with self._lock:
                self._known.pop(text, None)
                save_known(self._last, self._known)
            raise
        fresh = Known(found.version, found.state_digest, found.package, now_ms(), time.monotonic())
        with self._lock:
            changed = known is None or known.digest != fresh.digest
            self._known[text] = fresh
            if changed:
                save_known(self._last, self._known)
        return fresh

    def _counted_away(self, known: Known) -> Known:
        with self._lock:
            self.counts.away += 1
        return known

    def _asked(self, name: ModelName) -> Newest:
        with self._ask_lock:
            if self._asker is None:
                self._asker = PackageClient(self._edge)
            try:
                return self._found(self._asker, name)
            except TransferError:
                self._drop_asker()
                raise

    def _drop_asker(self) -> None:
        if self._asker is not None:
            self._asker.__exit__()
            self._asker = None

    def _found(self, client: PackageClient, name: ModelName) -> Newest:
        reference = name.reference
        found = client.newest(reference.expert, reference.version, reference.channel)
        if found.state_digest.hex().startswith(name.digest):
            return found
        if name.version is not None:
            raise UnknownExpertError(
                f"{name.expert} version {name.version} has digest {found.state_digest.hex()[:16]}, asked was for {name.digest}"
            )
        for version in range(found.version - 1, max(-1, found.version - 1 - MOST_STEPS_BACK), -1):
            found = client.newest(name.expert, version)
            if found.state_digest.hex().startswith(name.digest):
                return found
        raise UnknownExpertError(f"{name.expert} has no version of digest {name.digest[:16]} among its newest {MOST_STEPS_BACK}")

    def _held(self, name: ModelName, known: Known) -> Resolved:
        directory = self.cache.get(known.digest)
        if directory is not None:
            with self._lock:
                self.counts.hits += 1
        else:
            with self._expert_locks[name.expert]:
                directory = self.cache.get(known.digest) or self._fetched(name.expert, known)
        fixed = fixed_name(name.expert, known.version, known.digest)
        age_s = max(0.0, (now_ms() - known.confirmed_ms) / 1000)
        return Resolved(fixed, name.expert, known.version, known.digest, adapter_id_of(known.digest), directory, age_s)

    def _fetched(self, expert: str, known: Known) -> Path:
        with self._lock:
            self.counts.misses += 1
        what = fixed_name(expert, known.version, known.digest)
        write = self._write_package if known.package else self._write_composed
        return self.cache.put(known.digest, lambda folder: write(Reference(expert, known.version), known.digest, folder, what))

    def _write_package(self, reference: Reference, digest: bytes, folder: Path, what: str) -> None:
        began = time.perf_counter()
        with PackageClient(self._edge) as client:
            options = PullOptions(self._settings.publisher, self._settings.init, go_back=True)
            fetched = fetch_package(client, reference, options, self._counting())
        moved = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "fetched.expert"
            file.write_bytes(fetched.data)
            opened = unpack(file, folder, init=self._settings.init)
        check_statements(opened.manifest.metadata.get(ADAPTER, {}), self._base, what, self._settings.require_base)
        self._fitted(folder, what, began, moved)

    def _write_composed(self, reference: Reference, digest: bytes, folder: Path, what: str) -> None:
        if self._settings.publisher is not None:
            raise InputError(f"{what} is composed in rounds: no one publisher signed it, the publisher's key does not apply")
        began = time.perf_counter()
        origin = Origin(self._base.weights) if self._base.weights else Origin()
        with EdgeClient(self._edge) as client:
            synced = client.sync(reference.expert, reference.version, go_back=True, origin=origin, progress=self._counting())
        moved = time.perf_counter()
        write_peft_directory(folder, synced)
        self._fitted(folder, what, began, moved)

    def _fitted(self, folder: Path, what: str, began: float, moved: float) -> None:
        fit(folder, self._settings.limits, what)
        with self._lock:
            self.counts.transfer_s += moved - began
            self.counts.decode_s += time.perf_counter() - moved

    def _counting(self) -> Progress:
        return lambda _total: ByteCounter(self.counts)
