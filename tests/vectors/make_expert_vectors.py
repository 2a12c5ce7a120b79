"""Writes tests/vectors/expert_files: whole expert files, valid and invalid. Run by hand: `python -m tests.vectors.make_expert_vectors`."""

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file

from compeft_client.checkpoints.initial_values import Start
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed
from compeft_core import Tensor
from compeft_proto import envelope as dsse
from compeft_proto import packed_manifest
from compeft_proto.expert_manifest import ADAPTER, manifest_to_proto
from compeft_proto.v1 import envelope_pb2
from compeft_proto.v1 import expert_pb2 as pb

FOLDER = Path(__file__).with_name("expert_files")
HEAD = struct.Struct("<4sBII")
Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model.l.0.q"


def digest(tensors: dict[str, Tensors]) -> str:
    """SHA-256 of all tensors: file, name and values, in the order of their names."""
    hashed = hashlib.sha256()
    for file in sorted(tensors):
        for name in sorted(tensors[file]):
            hashed.update(f"{file}:{name}".encode() + np.ascontiguousarray(tensors[file][name]).tobytes())
    return hashed.hexdigest()


def lora(random: np.random.Generator, rank: int = 3) -> Tensors:
    a, b = random.standard_normal((rank, 20)), random.standard_normal((16, rank)) * 0.3 ** np.arange(rank)
    return {f"{PREFIX}.lora_A.weight": a.astype(np.float32), f"{PREFIX}.lora_B.weight": b.astype(np.float32)}


def tuned_from(seed: int, tensors: Tensors) -> Tensors:
    """Tensors a little away from where a seed starts them."""
    made = {}
    for name, tensor in tensors.items():
        start = [*Start(seed=seed).pieces(ADAPTER, Tensor(name, tensor.shape)), np.zeros(0, np.float32)]
        flat = np.concatenate(start)
        made[name] = (0.1 * tensor + (flat.reshape(tensor.shape) if flat.size else 0)).astype(np.float32)
    return made


def sources(random: np.random.Generator) -> dict[str, tuple[Tensors, dict[str, object], PackSettings]]:
    """By name of a valid vector: tensors, configuration and settings."""
    table = np.sort(random.choice(40 * 50, 80, replace=False))
    positions = np.stack([table // 50, table % 50]).astype(np.int32)
    half = {n: t.astype(np.float16) for n, t in lora(random).items()}
    names = ("hada_w1_a", "hada_w2_a", "hada_w1_b", "hada_w2_b")
    loha = {f"{PREFIX}.{n}": random.standard_normal((16, 2) if n[-1] == "a" else (2, 20)).astype(np.float32) for n in names}
    head = {"base_model.model.score.weight": random.standard_normal((30, 40)).astype(np.float32)}
    plain: dict[str, object] = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    counts = {"base_model.model.counts": np.zeros(200, np.int64)}
    keep = PackSettings(quality=0.9)
    return {
        "products": (lora(random), plain, keep),
        "products-of-half": (half, plain, keep),
        "products-and-integers": (lora(random) | head, plain | {"modules_to_save": ["score"]}, keep),
        "products-and-exact": (lora(random) | {f"{PREFIX}.lora_magnitude_vector": np.arange(16, dtype=np.float32)}, plain, keep),
        "products-of-zeros": ({n: 0 * t for n, t in lora(random).items()}, plain, keep),
        "loha": (loha, {"peft_type": "LOHA", "r": 2, "alpha": 4}, keep),
        "positions": ({f"{PREFIX}.shira_indices": positions}, {"peft_type": "SHIRA", "r": 1}, PackSettings()),
        "ternary": (lora(random), plain, PackSettings(density=0.2)),
        "ternary-from-a-seed": (tuned_from(5, lora(random)), plain, PackSettings(density=0.2, init="seed:5")),
        "deflated": (counts, {"peft_type": "IA3"}, PackSettings()),
        "exact": ({"base_model.model.v": random.standard_normal(9).astype(np.float32)}, {"peft_type": "IA3"}, PackSettings()),
    }


def made(folder: Path, tensors: Tensors, fields: dict[str, object], settings: PackSettings) -> bytes:
    """An expert file, and beside it its directory."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_compressed(folder, folder.with_suffix(".expert"), settings)
    return folder.with_suffix(".expert").read_bytes()


def framed(envelope: bytes, payloads: bytes, version: int = 2) -> bytes:
    """Head, envelope, payloads."""
    return HEAD.pack(b"CPFX", version, len(envelope), zlib.crc32(envelope)) + envelope + payloads


def enveloped(packed: bytes, payloads: bytes) -> bytes:
    """A file whose packed manifest is given."""
    return framed(envelope_pb2.Envelope(payload=packed, payload_type=packed_manifest.TYPE).SerializeToString(), payloads)


def changed(path: Path, change: Callable[[pb.ExpertManifest], object]) -> bytes:
    """The file with a changed manifest and the same payloads."""
    opened = open_expert(path)
    message = manifest_to_proto(opened.manifest)
    change(message)
    packed = packed_manifest.pack(message.SerializeToString(deterministic=True))
    return enveloped(packed, path.read_bytes()[opened.payload_start :])


def invalid(folder: Path) -> dict[str, bytes]:
    """Files that break one rule each."""
    files = {name: (folder / f"{name}.expert").read_bytes() for name in ("products", "positions", "deflated")}
    good, start = files["products"], open_expert(folder / "products.expert").payload_start
    message = manifest_to_proto(open_expert(folder / "products.expert").manifest).SerializeToString(deterministic=True)
    packed, payloads = packed_manifest.pack(message), good[start:]
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    bombed = bomb.compress(bytes(2**24 + 1)) + bomb.flush()
    old = envelope_pb2.Envelope(payload=message, payload_type=dsse.EXPERT.name).SerializeToString()

    def of(name: str, change: Callable[[pb.ExpertManifest], object]) -> bytes:
        return changed(folder / f"{name}.expert", change)

    def fill(field: list[float], values: list[float]) -> None:
        field[:] = values

    def repeat(m: pb.ExpertManifest) -> None:
        m.parts.append(m.parts[0])

    return {
        "magic": b"CPFY" + good[4:],
        "version": good[:4] + b"\3" + good[5:],
        "head-only": good[:13],
        "cut-head": good[:9],
        "empty": b"",
        "crc": good[:9] + bytes(4) + good[13:],
        "cut-manifest": good[: start - 1],
        "cut-payload": good[:-1],
        "byte-follows": good + b"\0",
        "flipped-payload": good[:-1] + bytes([good[-1] ^ 1]),
        "huge-envelope": good[:5] + (2**31).to_bytes(4, "little") + good[9:],
        "no-envelope": framed(b"\xff\xff\xff", payloads),
        "unpacked-manifest-in-version-2": framed(old, payloads),
        "packed-manifest-in-version-1": framed(
            envelope_pb2.Envelope(payload=packed, payload_type=packed_manifest.TYPE).SerializeToString(), payloads, 1
        ),
        "deflate-cut": enveloped(packed[:-1], payloads),
        "deflate-follows": enveloped(packed + b"\0", payloads),
        "deflate-damaged": enveloped(b"\xff" + packed[1:], payloads),
        "deflate-bomb": enveloped(bombed, b""),
        "deflate-of-nothing": enveloped(packed_manifest.pack(b""), b""),
        "deflate-of-no-message": enveloped(packed_manifest.pack(b"\xff\xff"), payloads),
        "no-parts": of("products", lambda m: m.ClearField("parts")),
        "part-twice": of("products", repeat),
        "unknown-file": of("products", lambda m: setattr(m.parts[0], "file", 99)),
        "unknown-dtype": of("products", lambda m: fill(m.parts[0].dtypes, [99])),
        "dtype-that-is-no-float": of("products", lambda m: fill(m.parts[0].dtypes, [5])),
        "dtypes-too-many": of("products", lambda m: fill(m.parts[0].dtypes, [1, 2, 3])),
        "slices-all-one": of("products", lambda m: fill(m.parts[0].product.slices, [1])),
        "slices-that-do-not-divide": of("products", lambda m: fill(m.parts[0].product.slices, [2])),
        "slices-of-zero": of("products", lambda m: fill(m.parts[0].product.slices, [0])),
        "two-ways": of("products", lambda m: setattr(m.parts[0], "deflated_bytes", 5)),
        "start-of-products": of("products", lambda m: setattr(m.parts[0], "seed", 5)),
        "steps-of-nothing": of("deflated", lambda m: m.parts[0].quantised.SetInParent()),
        "step-not-finite": of("products-and-integers", lambda m: fill(m.parts[1].quantised.steps, [float("nan")])),
        "step-negative": of("products-and-integers", lambda m: fill(m.parts[1].quantised.steps, [-1.0])),
        "steps-too-many": of("products-and-integers", lambda m: fill(m.parts[1].quantised.steps, [1.0, 1.0])),
        "columns-zero": of("positions", lambda m: fill(m.parts[0].columns, [0])),
        "columns-too-many": of("positions", lambda m: fill(m.parts[0].columns, [50, 50])),
        "columns-too-large": of("positions", lambda m: fill(m.parts[0].columns, [2**31 + 1])),
        "columns-of-a-vector": of(
            "deflated", lambda m: (setattr(m.parts[0], "deflated_bytes", 0), fill(m.parts[0].columns, [5]))
        ),
        "deflated-to-more": of("deflated", lambda m: setattr(m.parts[0], "deflated_bytes", 1601)),
        "deflated-said-to-be-raw": of("deflated", lambda m: setattr(m.parts[0], "deflated_bytes", 0)),
        "tool-not-printable": of("products", lambda m: setattr(m, "tool", "a\nb")),
        "metadata-of-no-file": of("products", lambda m: m.metadata.add(file=2)),
    }


def main() -> None:
    """All of it."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for title, (tensors, fields, settings) in sources(np.random.default_rng(7)).items():
            data = made(folder / title, tensors, fields, settings)
            found = load_compressed(folder / f"{title}.expert", init=settings.init)
            keep(title, "valid", data, digest({f: dict(t) for f, t in found.tensors.items()}))  # type: ignore[arg-type]
        for title, data in invalid(folder).items():
            keep(title, "invalid", data)


def keep(title: str, expect: str, data: bytes, values: str = "") -> None:
    """One vector."""
    text = io.StringIO()
    text.write(f"expect: {expect}\n" + (f"digest: {values}\n" if values else "") + "\n")
    octets = data.hex()
    text.write("\n".join(octets[at : at + 128] for at in range(0, len(octets), 128)) + "\n")
    (FOLDER / f"{title}.txt").write_text(text.getvalue())


if __name__ == "__main__":
    main()
