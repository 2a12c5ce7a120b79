"""Writes the seed corpus: small valid inputs of each target. Run by hand: `python -m tests.fuzz.make_corpus`. No test runs it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save, save_file

from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_core import Compression, Update, compress, encode, layout_of, shapes_of
from compeft_proto import envelope as dsse
from compeft_proto import packed_manifest
from compeft_proto.chunk_refs import refs_of
from compeft_proto.convert import layout_to_proto
from compeft_proto.expert_manifest import manifest_to_proto
from compeft_proto.keys import new_key
from compeft_proto.positions_part import write_tables
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from tests.fuzz.run import CORPUS
from tests.fuzz.targets import AGGREGATOR
from tests.vectors import product

LAYOUT = layout_of({"x.lora_A": (4, 60), "x.lora_B": (50, 4), "head": (2, 8)}, dense=["head"])
WIDE = layout_of({"x.lora_A": (8, 300), "x.lora_B": (400, 8)})


def main() -> None:
    """All of it."""
    random = np.random.default_rng(0)
    vector = random.normal(0, 1e-3, LAYOUT.size).astype(np.float32)
    for density in (0.01, 0.3, 0.9):
        made = compress(LAYOUT, vector, Compression(density))
        keep("update", f"rice-{density}", encode(made))
        keep("update", f"rice4-{density}", encode(made, codec="rice4"))
        keep("update", f"context-{density}", encode(_low_rank(random, density), codec="context", shapes=shapes_of(WIDE)))
    keep("update", "tensors", encode(compress(LAYOUT, vector, Compression(0.1, granularity="tensor"))))
    for name, (_, shapes, blob) in product.valid().items():
        if len(shapes) <= 16 and all(max(shape) <= 64 for shape in shapes) and len(blob) < 1000:
            sides = bytes(side - 1 for shape in shapes for side in shape)
            keep("product", name, bytes([len(shapes)]) + sides + blob)
    key = new_key()
    sealed = dsse.seal(key, dsse.RECEIPT, pb.Receipt(expert="e", round=1))
    keep("envelope", "receipt", xp.SubmitRequest(envelope=sealed).SerializeToString())
    keep("manifest", "layout", layout_to_proto(LAYOUT).SerializeToString())
    keep("key", "public", key.public.to_pem())
    keep("letter", "step", _letter(encode(made)).SerializeToString())
    tensors = {"a.lora_A.weight": vector[:240].reshape(4, 60), "a.lora_B.weight": vector[240:440].reshape(50, 4)}
    keep("safetensors", "two", save(tensors))
    with TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        adapter.mkdir()
        save_file(tensors, adapter / "adapter_model.safetensors")
        (adapter / "adapter_config.json").write_text('{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["a"]}')
        packed = Path(folder) / "small.expert"
        save_compressed(adapter, packed, PackSettings())
        keep("expert_file", "lora", packed.read_bytes())
        manifest = manifest_to_proto(open_expert(packed).manifest).SerializeToString(deterministic=True)
        keep("packed", "lora", packed_manifest.pack(manifest))
    table = np.array([[0, 0, 2], [1, 3, 4]])
    keep("positions", "three", bytes([2, 9, 0]) + write_tables([table], [10]))
    keep("positions", "far", bytes([1, 9, 0]) + write_tables([np.array([[0, 90], [1, 3]])], [10]))


def _letter(payload: bytes) -> xp.Letter:
    """An answer with one step, in boxes that are open."""
    statement = pb.SyncStatement(expert="e", head_version=1, want_version=1)
    step = pb.VersionManifest(expert="e", version=1, chunks=refs_of(payload))
    replies = (
        xp.SyncReply(statement=dsse.seal(AGGREGATOR, dsse.SYNC_STATEMENT, statement)),
        xp.SyncReply(version=dsse.seal(AGGREGATOR, dsse.VERSION, step)),
        xp.SyncReply(listed=True),
        xp.SyncReply(data=payload),
    )
    return xp.Letter(answer=[reply.SerializeToString() for reply in replies])


def _low_rank(random: np.random.Generator, density: float) -> Update:
    """An update whose rows and signs agree, as training makes them: `context` has something to learn."""
    parts = [np.outer(random.normal(size=rows), random.normal(size=columns)).ravel() for rows, columns in shapes_of(WIDE)]
    return compress(WIDE, np.concatenate(parts).astype(np.float32), Compression(density))


def keep(target: str, name: str, data: bytes) -> None:
    """One seed."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
