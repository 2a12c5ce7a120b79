"""A file made once, never written by a test: what was packed then is still read."""

from pathlib import Path

import numpy as np

from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import load_compressed
from compeft_proto.keys import PublicKey

GOLDEN = Path(__file__).with_name("golden.expert")
SIGNER = PublicKey(bytes.fromhex("3fd4f32bff4b6b28151c7b1f3bb6d67fd9fa9796783fe6a4853d29efe8b77d69"))


def test_the_golden_file_still_means_what_it_meant() -> None:
    opened = open_expert(GOLDEN, SIGNER)
    assert opened.manifest.base_model == "org/base"
    assert [(part.file, part.dtypes[0], part.seed) for part in opened.manifest.parts] == [
        ("adapter_model.safetensors", "F32", 7),
        ("adapter_model.safetensors", "F32", None),
    ]
    tensors = load_compressed(GOLDEN, key=SIGNER).tensors["adapter_model.safetensors"]
    a, b, scale = (tensors[f"m.q_proj.{name}"] for name in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
    np.testing.assert_array_equal(b, np.float32([[0, 0.4166666567325592], [0, 0], [-0.4166666567325592, 0]]))
    np.testing.assert_allclose(a[0], [0.066049159, -0.24698561, -0.26053625, -0.034065783], rtol=1e-6)
    assert scale.tolist() == [1.0, 2.0, 3.0]
