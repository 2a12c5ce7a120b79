"""Pushing and fetching packages, over a real connection."""

import hashlib
import json
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from safetensors.numpy import load_file

from compeft_client.cli.main import run
from compeft_client.delivery.pull import PullOptions, Reference, deliver, reference_of
from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.package_client import Measured, PackageClient
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import save_compressed, unpack
from compeft_core.errors import FormatError, InputError
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import CHUNK_BYTES, refs_of
from compeft_proto.clock import now_ms
from compeft_proto.errors import (
    ConflictError,
    ForbiddenError,
    ReplayError,
    SignatureError,
    UnknownExpertError,
    UnknownKeyError,
    WrongBaseError,
)
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.sync_answer import no_progress
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.admin.lineage import Versions
from compeft_server.data_directory import open_store
from compeft_server.ledger import schema
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.extras import densities_of
from compeft_server.reports.formats.html import to_html
from compeft_server.reports.formats.json_format import to_json
from compeft_server.reports.formats.markdown import to_markdown
from compeft_server.reports.formats.table_rows import rows_of
from compeft_server.reports.formats.text import verdict
from tests.client import builders
from tests.client.delivery.conftest import PACKAGE, edge_at, packed, publisher, reader
from tests.rounds.conftest import EXPERT, World
from tests.rounds.test_resume import Cutter


def chunks_of(world: World) -> list[str]:
    """Everything that the store holds, partial chunks included."""
    return sorted(p.name for d in ("chunks", "partial") for p in (world.folder / "data" / d).rglob("*") if p.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_was_pushed_is_pulled_bit_for_bit_packed_and_unpacked(world: World, file: Path, tmp_path: Path) -> None:
    pushed = publisher(world).push(PACKAGE, file.read_bytes())
    assert (pushed.version, pushed.new, pushed.sha256) == (0, True, hashlib.sha256(file.read_bytes()).digest())
    edge = edge_at(world, "reader", world.enrol("reader"))
    assert PackageClient(edge).fetch(PACKAGE).data == file.read_bytes()
    got = deliver(edge, Reference(PACKAGE), tmp_path / "pulled")
    unpack(file, tmp_path / "unpacked")
    assert contents(tmp_path / "pulled") == contents(tmp_path / "unpacked")
    assert (got.version, got.publisher, got.digest) == (0, "conductor", pushed.sha256)


def test_every_version_stays_fetchable_and_costs_only_its_own_bytes(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in range(4)]
    assert [publisher(world).push(PACKAGE, data).version for data in files] == [0, 1, 2, 3]
    client = reader(world)
    assert client.fetch(PACKAGE).data == files[3]
    assert client.fetch(PACKAGE, 1).data == files[1]
    down = [t for t in world.transfers_of(PACKAGE, "down", 6) if t.keyid == client._edge.key.keyid]
    assert [t.payload_bytes for t in down] == [len(files[3]), len(files[1])]
    assert all(t.wire_sent_bytes > t.payload_bytes for t in down)
    up = world.transfers_of(PACKAGE, "up", 4)
    assert [(t.version, t.payload_bytes, t.dense_fp32_bytes) for t in up] == [(i, len(f), 4 * 1024) for i, f in enumerate(files)]
    published = [e for e in world.ledger.audit_entries() if (e.event.action, e.event.subject) == ("publish", PACKAGE)]
    assert [json.loads(e.event.detail)["publisher"] for e in published] == [world.conductor_key.keyid] * 4


def test_the_same_file_again_is_the_same_version_and_only_its_metrics_are_new(world: World, file: Path) -> None:
    data, measured = file.read_bytes(), [Measured("synced", "accuracy", 0.9), Measured("base", "accuracy", 0.7)]
    publisher(world).push(PACKAGE, data)
    chunks = chunks_of(world)
    again = publisher(world).push(PACKAGE, data, measured, 500)
    once_more = publisher(world).push(PACKAGE, data, measured, 500)
    assert (again.version, again.new) == (once_more.version, once_more.new) == (0, False)
    assert len(world.ledger.versions(PACKAGE, -1, 9)) == 1
    assert chunks_of(world) == chunks
    assert [(q.arm, q.value, q.num_examples) for q in world.ledger.quality(PACKAGE)] == [("synced", 0.9, 500), ("base", 0.7, 500)]
    assert [t.payload_bytes for t in world.transfers_of(PACKAGE, "up", 3)] == [len(data), 0, 0]


def test_a_first_push_is_no_refusal_but_a_fetch_of_what_is_not_there_is(world: World, file: Path) -> None:
    publisher(world).push(PACKAGE, file.read_bytes())
    assert [r for r in world.ledger.refusals("") if r.code == "unknown_expert"] == []
    with pytest.raises(UnknownExpertError):
        reader(world).fetch("nobody-pushed-it")
    assert [r.code for r in world.ledger.refusals("")] == ["unknown_expert"]


def test_an_older_file_again_is_a_new_version_of_which_no_byte_is_sent(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in (1, 2, 1)]
    assert [publisher(world).push(PACKAGE, data).version for data in files] == [0, 1, 2]
    assert world.transfers_of(PACKAGE, "up", 3)[2].wire_received_bytes < len(files[0])
    assert reader(world).fetch(PACKAGE).data == files[0]


def sent(client: PackageClient, data: bytes, **fields: object) -> pb.VersionManifest:
    """Push what a package with these fields claims."""
    package = pb.Package(expert=PACKAGE, sha256=hashlib.sha256(data).digest(), chunks=refs_of(data), keyid=client._edge.key.keyid)
    package.MergeFrom(pb.Package(**fields))  # type: ignore[arg-type]
    return client._sent(package, data, no_progress)


def test_a_file_that_was_tampered_with_is_refused_and_nothing_is_stored(world: World, file: Path) -> None:
    data = file.read_bytes()
    before = chunks_of(world)
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(FormatError, match="payload 1 is not the one"):
        sent(publisher(world), flipped)
    with pytest.raises(FormatError, match="its chunks make"):
        sent(publisher(world), data, sha256=bytes(32))
    with pytest.raises(FormatError, match="not an expert file"):
        sent(publisher(world), b"x" + data)
    with pytest.raises(FormatError, match="its manifest makes"):
        sent(publisher(world), data + b"x")
    longer = data[:5] + struct.pack("<I", 2**24) + data[9:]
    with pytest.raises(FormatError, match="its manifest alone claims"):
        sent(publisher(world), longer)
    assert chunks_of(world) == before
    assert world.ledger.expert(PACKAGE) is None
    assert len(world.ledger.refusals(PACKAGE)) == 5


def test_who_may_publish_every_expert_pushes_on_to_its_own_only(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in (1, 2)]
    owner, other = (PackageClient(edge_at(world, name, world.enrol(name))) for name in ("owner", "other"))
    for name in ("owner", "other"):
        policy_admin.rule(world.ledger, "allow", "*", name, ("publish",), now_ms())
    assert [owner.push(PACKAGE, data).version for data in files] == [0, 1]
    with pytest.raises(ForbiddenError, match="tuned was pushed by 'owner': its operator must name it"):
        other.push(PACKAGE, files[0])


def test_an_aggregator_with_another_key_and_a_client_that_was_never_let_in_get_each_their_way_out(world: World) -> None:
    stranger, trusted = new_key(), new_key().public
    with pytest.raises(UnknownKeyError, match="the aggregator has revoked this client, or never let it in"):
        PackageClient(edge_at(world, "stranger", stranger)).newest(EXPERT)
    edge = replace(edge_at(world, "reader", world.enrol("reader")), aggregator=trusted)
    with pytest.raises(UnknownKeyError, match=f"known here is {trusted.keyid}; another aggregator answers, or it has a new key"):
        PackageClient(edge).newest(EXPERT)


def test_only_the_next_version_can_be_pushed(world: World, tmp_path: Path) -> None:
    first, second = packed(tmp_path, 1).read_bytes(), packed(tmp_path, 2).read_bytes()
    publisher(world).push(PACKAGE, first)
    for version in (0, 2):
        with pytest.raises(ConflictError, match=f"goes on with version 1, not {version}"):
            sent(publisher(world), second, version=version)
    assert sent(publisher(world), first, version=1).version == 0


def test_two_who_push_at_the_same_moment_both_get_a_version(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in range(2)]
    pushers = [reader(world, name) for name in ("a", "b")]
    policy_admin.rule(world.ledger, "allow", PACKAGE, "role:edge", ("publish",), now_ms())
    with ThreadPoolExecutor(2) as pool:
        pushed = list(pool.map(lambda both: both[0].push(PACKAGE, both[1]), zip(pushers, files, strict=True)))
    assert {p.version for p in pushed} == {0, 1}
    for made, data in zip(pushed, files, strict=True):
        assert pushers[0].fetch(PACKAGE, made.version).data == data


def test_a_grant_for_every_expert_does_not_push_onto_a_package_of_another_member(world: World, file: Path) -> None:
    publisher(world).push(PACKAGE, file.read_bytes())
    edge = PackageClient(edge_at(world, "berlin", world.enrol("berlin")))
    with pytest.raises(ForbiddenError, match="must name it"):
        edge.push(PACKAGE, file.read_bytes())
    policy_admin.rule(world.ledger, "allow", PACKAGE, "role:edge", ("publish",), now_ms())
    assert edge.push(PACKAGE, file.read_bytes()).version == 0


def test_only_a_publisher_may_push_and_only_under_its_own_key(world: World, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ForbiddenError, match="role reader, may not"):
        PackageClient(edge_at(world, "r", world.enrol("r", "reader"))).push(PACKAGE, file.read_bytes())
    berlin = reader(world, "berlin")
    policy_admin.rule(world.ledger, "deny", PACKAGE, "berlin", ("publish",), now_ms())
    with pytest.raises(ForbiddenError, match="berlin"):
        berlin.push(PACKAGE, file.read_bytes())
    with pytest.raises(ForbiddenError, match="manifest names key"):
        sent(publisher(world), file.read_bytes(), keyid="0" * 32)
    assert world.ledger.expert(PACKAGE) is None
    edge = reader(world, "paris")
    assert edge.push(PACKAGE, file.read_bytes()).version == 0
    assert edge.fetch(PACKAGE).publisher == "paris"
    with pytest.raises(ForbiddenError, match="berlin"):
        berlin.push(PACKAGE, packed(tmp_path, 2).read_bytes())


def test_packages_and_composed_experts_do_not_mix(world: World, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="composed in rounds: push under another name"):
        publisher(world).push(EXPERT, file.read_bytes())
    with pytest.raises(ConflictError, match="composed in rounds: push under another name"):
        sent(publisher(world), file.read_bytes(), expert=EXPERT)
    publisher(world).push(PACKAGE, file.read_bytes())
    with pytest.raises(ConflictError, match="is a package"):
        world.conductor().open_round(PACKAGE, "run", 1, 60)
    edge = edge_at(world, "edge", world.enrol("edge"))
    with pytest.raises(ConflictError, match="compeft pull"):
        EdgeClient(edge).sync(PACKAGE)
    with pytest.raises(ConflictError, match="it has no file"):
        PackageClient(edge).fetch(EXPERT)
    assert deliver(edge, Reference(EXPERT), tmp_path / "composed").version == 0
    assert (tmp_path / "composed" / "head.safetensors").exists()


def reseal(world: World, change: object, key: SigningKey | None = None) -> None:
    """Alter the newest version's manifest in the ledger, as an aggregator that cheats might."""
    (row,) = world.ledger.versions(PACKAGE, -1, 0)
    manifest = pb.VersionManifest.FromString(mf_envelope(row.envelope).payload)
    change(manifest)  # type: ignore[operator]
    sealed = dsse.seal(key or world.aggregator, dsse.VERSION, manifest).SerializeToString()
    with world.ledger._engine.begin() as connection:
        connection.execute(sa.update(schema.versions).where(schema.versions.c.expert == PACKAGE), {"envelope": sealed})


def mf_envelope(data: bytes) -> "dsse.envelope_pb2.Envelope":
    return dsse.envelope_pb2.Envelope.FromString(data)


def test_a_version_that_its_publisher_did_not_sign_is_not_believed(world: World, file: Path) -> None:
    publisher(world).push(PACKAGE, file.read_bytes())
    client, stranger = reader(world), new_key()

    def other_key(manifest: pb.VersionManifest) -> None:
        manifest.publication.public_key = stranger.public.raw

    def other_package(manifest: pb.VersionManifest) -> None:
        package = pb.Package(expert="another", sha256=manifest.state_digest, keyid=stranger.keyid)
        manifest.publication.package.CopyFrom(dsse.seal(stranger, dsse.PACKAGE, package))

    def altered(manifest: pb.VersionManifest) -> None:
        manifest.publication.public_key = world.conductor_key.public.raw
        manifest.publication.package.CopyFrom(dsse.seal(world.conductor_key, dsse.PACKAGE, pb.Package(expert=PACKAGE)))
        manifest.publication.package.payload += b" "

    for change, error in ((other_key, UnknownKeyError), (other_package, WrongBaseError), (altered, SignatureError)):
        reseal(world, change)
        with pytest.raises(error):
            client.fetch(PACKAGE)


def test_a_reader_may_trust_one_publisher_only(world: World, file: Path) -> None:
    publisher(world).push(PACKAGE, file.read_bytes())
    client = reader(world)
    assert client.fetch(PACKAGE, publisher=world.conductor_key.public).publisher == "conductor"
    with pytest.raises(UnknownKeyError, match=r"was published by .*, trusted is"):
        client.fetch(PACKAGE, publisher=new_key().public)


def test_a_reader_that_has_seen_a_version_is_not_shown_an_older_one_as_the_newest(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in range(2)]
    client = reader(world)
    for data in files:
        publisher(world).push(PACKAGE, data)
    client.fetch(PACKAGE)
    with world.ledger._engine.begin() as connection:
        table = schema.versions
        connection.execute(sa.delete(table).where(table.c.expert == PACKAGE, table.c.version == 1))
    with pytest.raises(ReplayError, match="version 1 was fetched before"):
        client.fetch(PACKAGE)
    assert client.fetch(PACKAGE, go_back=True).data == client.fetch(PACKAGE, 0).data == files[0]


def large(folder: Path) -> bytes:
    """A packed file of several chunks: a head of random values takes about one byte a value."""
    random = np.random.default_rng(0)
    tensors = builders.tuned(builders.initial()) | {
        "base_model.model.score.weight": random.normal(size=(1400, 2048)).astype(np.float32)
    }
    directory = builders.write_adapter(folder / "large", tensors)
    save_compressed(directory, folder / "large.expert")
    return (folder / "large.expert").read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_push_and_a_fetch_that_are_cut_go_on_and_move_at_most_one_chunk_twice(
    world: World, cutter: Cutter, tmp_path: Path, share: float
) -> None:
    data = large(tmp_path)
    assert len(data) > 2 * CHUNK_BYTES
    cutter.up_limit = int(share * len(data))
    assert publisher(world, cutter.address, patience_s=20).push(PACKAGE, data).version == 0
    moved = sum(t.wire_received_bytes for t in world.transfers_of(PACKAGE, "up", 2))
    assert len(data) < moved < len(data) + CHUNK_BYTES + 30_000
    getting = reader(world, "getting", cutter.address, patience_s=20)
    cutter.down_limit = int(share * len(data))
    assert getting.fetch(PACKAGE).data == data
    mine = [t for t in world.transfers_of(PACKAGE, "down", 4) if t.keyid == getting._edge.key.keyid]
    assert sum(t.payload_bytes for t in mine) <= len(data) + CHUNK_BYTES


def test_lineage_names_the_publisher_and_a_rollback_gives_the_old_file_again(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in range(2)]
    for data in files:
        publisher(world).push(PACKAGE, data)
    versions = Versions(world.aggregator, open_store(world.folder / "data"), world.ledger)
    assert [o.publisher for o in versions.lineage(PACKAGE)] == ["conductor", "conductor"]
    assert versions.roll_back(PACKAGE, 0, now_ms()).version == 2
    got = reader(world).fetch(PACKAGE)
    assert (got.version, got.data) == (2, files[0])
    for number in range(3):
        versions.verify(PACKAGE, number)
    assert publisher(world).push(PACKAGE, files[1]).version == 3


def test_the_report_shows_a_saving_beside_the_quality_that_was_pushed(world: World, file: Path) -> None:
    measured = [Measured("synced", "accuracy", 0.91), Measured("base", "accuracy", 0.7), Measured("dense", "accuracy", 0.92)]
    publisher(world).push(PACKAGE, file.read_bytes(), measured, 500)
    reader(world).fetch(PACKAGE)
    world.transfers_of(PACKAGE, "down", 2)
    report = read_report(world.ledger, PACKAGE)
    assert report.parameters == 1024
    assert report.base is not None
    assert report.final is not None
    assert report.final.score is not None
    assert (report.metric, report.base.mean, report.final.score.mean) == ("accuracy", 0.7, 0.91)
    assert report.down.dense_fp32_bytes == 4 * 1024
    assert report.savings_fp32 is not None


def test_no_saving_stands_beside_the_quality_of_a_version_that_nobody_fetched(world: World, tmp_path: Path) -> None:
    files = [packed(tmp_path, seed).read_bytes() for seed in (1, 2)]
    publisher(world).push(PACKAGE, files[0])
    publisher(world).push(PACKAGE, files[1], [Measured("synced", "accuracy", 0.91)], 500)
    reader(world).fetch(PACKAGE, 0)
    world.transfers_of(PACKAGE, "down", 3)
    report = read_report(world.ledger, PACKAGE)
    assert (report.savings_fp32, report.savings_bf16, report.stated) == (None, None, None)
    said = " ".join(to_markdown(report).split())
    assert "No client has fetched a version of known quality" in said
    assert "91.0 %, reported by conductor, not measured" in said
    assert "reported by conductor, not measured" in to_html(report)
    assert to_json(report)["final_reported_by"] == "conductor"
    reader(world, "second").fetch(PACKAGE)
    world.transfers_of(PACKAGE, "down", 5)
    after = read_report(world.ledger, PACKAGE)
    assert after.stated is not None
    assert (after.stated.version, after.led.payload_bytes < after.traffic.payload_bytes) == (1, True)
    assert "reported by conductor, not measured" in verdict(after)


def test_csv_and_densities_of_a_pushed_file_are_those_of_the_file(world: World, file: Path) -> None:
    data, own = file.read_bytes(), (world.aggregator.public,)
    publisher(world).push(PACKAGE, data, [Measured("synced", "accuracy", 0.91)], 500)
    reader(world).fetch(PACKAGE)
    world.transfers_of(PACKAGE, "down", 2)
    rows = [row for row in rows_of(world.ledger, own, PACKAGE) if row["payload_bytes"]]
    assert {row["version_origin"] for row in rows} == {"push"}
    assert {row["quality_reported_by"] for row in rows} == {"conductor"}
    sizes = {row.density: row for row in densities_of(world.ledger, PACKAGE, own, open_store(world.folder / "data"))}
    assert len({row.payload_bytes for row in sizes.values()}) == len(sizes) > 3
    used = [row for row in sizes.values() if row.used]
    assert [(row.payload_bytes, row.dense_bf16_bytes) for row in used] == [(len(data), 2 * 1024)]
    assert densities_of(world.ledger, PACKAGE, own) == ()


def options(world: World, key: Path, name: str) -> list[str]:
    """What a command needs to reach the world with a key of its own."""
    aggregator = world.folder / "data" / "aggregator.pub"
    named = {"aggregator": world.address, "aggregator-key": aggregator, "key": key, "state-dir": world.folder / f"cli-{name}"}
    return [text for option, value in named.items() for text in (f"--{option}", str(value))]


def answer_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What a command printed; the aggregator, which runs in this process, logs to the same place."""
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def key_file(folder: Path, name: str, key: SigningKey) -> Path:
    file = folder / f"{name}.key"
    file.write_bytes(key.to_pem())
    file.chmod(0o600)
    return file


def test_the_commands_push_a_directory_and_pull_it_by_version(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = packed(tmp_path, 1)
    theirs, ours = key_file(tmp_path, "conductor", world.conductor_key), key_file(tmp_path, "reader", world.enrol("reader"))
    push = ["push", str(tmp_path / "adapter-1"), PACKAGE, *options(world, theirs, "push"), "--format", "json"]
    assert run([*push, "--metric", "accuracy=0.9", "--base-metric", "0.7", "--examples", "50"]) == 0
    first = answer_of(capsys)
    assert (first["version"], first["new"]) == (0, True)
    assert run(push) == 0
    assert answer_of(capsys) == first | {"new": False}
    assert run(["push", str(file), PACKAGE, *options(world, theirs, "push")]) == 0
    assert f"{PACKAGE} version 1, {file.stat().st_size:,} bytes" in capsys.readouterr().out
    pull = ["pull", f"{PACKAGE}@0", *options(world, ours, "pull"), "--format", "json"]
    assert run([*pull, "-o", str(tmp_path / "out")]) == 0
    assert answer_of(capsys)["publisher"] == "conductor"
    assert run([*pull, "--packed", str(tmp_path / "out.expert")]) == 0
    assert hashlib.sha256((tmp_path / "out.expert").read_bytes()).hexdigest() == first["sha256"]
    unpack(tmp_path / "out.expert", tmp_path / "unpacked", key=world.conductor_key.public)
    assert contents(tmp_path / "out") == contents(tmp_path / "unpacked")
    assert run(pull) == run([*pull, "-o", "x", "--version", "1"]) == 3
    assert run([*push, "--base-metric", "0.7"]) == run([*push, "--metric", "accuracy"]) == 3


def test_a_name_may_say_a_version_or_a_channel() -> None:
    assert reference_of("a/b") == Reference("a/b")
    assert reference_of("a/b@3") == Reference("a/b", version=3)
    assert reference_of("a/b@stable") == Reference("a/b", channel="stable")
    with pytest.raises(InputError, match="ends with @"):
        reference_of("a@")
    with pytest.raises(InputError):
        reference_of("../a")


def test_nobody_signed_a_composed_expert_alone(world: World, tmp_path: Path) -> None:
    edge = edge_at(world, "edge", world.enrol("edge"))
    with pytest.raises(InputError, match="no one publisher"):
        deliver(edge, Reference(EXPERT), tmp_path / "out", PullOptions(publisher=new_key().public))


def test_a_file_of_products_is_pushed_and_pulled_with_its_names_types_and_configuration(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(5)
    factors = builders.tuned(builders.initial(3))
    tensors = {name: t.astype(np.float16 if "layers.0" in name else np.float32) for name, t in factors.items()}
    tensors["base_model.model.score.weight"] = random.normal(size=(40, 64)).astype(np.float32)
    adapter = builders.write_adapter(tmp_path / "products", tensors, use_rslora=True)
    theirs, ours = key_file(tmp_path, "conductor", world.conductor_key), key_file(tmp_path, "reader", world.enrol("reader"))
    push = ["push", str(adapter), PACKAGE, *options(world, theirs, "push"), "--quality", "0.9", "--format", "json"]
    assert run(push) == 0
    pushed = answer_of(capsys)
    assert pushed["new"] is True
    assert run(["pull", PACKAGE, *options(world, ours, "pull"), "-o", str(tmp_path / "out")]) == 0
    assert run(["pull", PACKAGE, *options(world, ours, "pull"), "--packed", str(tmp_path / "out.expert")]) == 0
    assert (tmp_path / "out.expert").stat().st_size == pushed["bytes"]
    parts = open_expert(tmp_path / "out.expert").manifest.parts
    assert [len(part.modules) for part in parts if part.slices is not None] == [3]
    assert all(part.coding is None for part in parts)
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in tensors.items()}
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()
    before, after = (products(t) for t in (tensors, found))
    assert np.sum(before * after) > 0.93 * np.linalg.norm(before) * np.linalg.norm(after)
    rows = [row for row in rows_of(world.ledger, (world.aggregator.public,), PACKAGE) if row["payload_bytes"]]
    assert {row["version_origin"] for row in rows} == {"push"}


def products(tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """B A of every module, one after the other."""
    names = [name for name in sorted(tensors) if "lora_A" in name]
    pairs = [(tensors[name.replace("lora_A", "lora_B")].astype(np.float64), tensors[name].astype(np.float64)) for name in names]
    return np.stack([b @ a for b, a in pairs])
