"""Exact deltas of consecutive checkpoints of a real full fine-tune: `python -m benchmarks.exact_deltas [--steps 4] [--rates 1e-6 1e-5]`.

SmolLM2-135M, all weights, AdamW on float32 masters, saved as bfloat16 after each step, as a trainer sends weights to inference engines
in reinforcement learning. Beside our file: raw int32 indices of the words that changed and LZMA (preset 9) of their new values, which is
at least as small as zstd's level 19 there. Prints a line a step, and on the last line one JSON object. Minutes on two cores.
"""

import argparse
import json
import lzma
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.language_model.base import load_base, load_tokenizer
from compeft_client.models.measure_base import passages
from compeft_core.exact import decode_exact, encode_exact

ROWS, TOKENS = 4, 128


def words_of(parameters: list[torch.nn.Parameter]) -> NDArray[np.uint16]:
    """All weights as bfloat16 words, one after the other."""
    return np.concatenate([p.detach().bfloat16().view(torch.int16).numpy().reshape(-1).view(np.uint16) for p in parameters])


def checkpoints(rate: float, steps: int) -> Iterator[NDArray[np.uint16]]:
    """The words before training and after each step."""
    torch.manual_seed(0)
    model, tokenizer = load_base(torch.float32), load_tokenizer()
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    texts = passages()
    yield words_of(parameters)
    for step in range(steps):
        batch = tokenizer(
            texts[step * ROWS : (step + 1) * ROWS], truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        yield words_of(parameters)


def compare(old: NDArray[np.uint16], new: NDArray[np.uint16]) -> dict[str, float]:
    """Bytes and seconds of one pair. Errors: SystemExit if a bit does not come back."""
    began = time.process_time()
    blob = encode_exact(old, new)
    encoded = time.process_time()
    if not np.array_equal(decode_exact(blob, old), new):
        raise SystemExit("a word did not come back")
    decoded = time.process_time()
    places = np.flatnonzero(old != new).astype("<i4")
    peer = places.nbytes + len(lzma.compress(new[places].tobytes(), preset=9))
    return {
        "words": old.size,
        "changed": places.size / old.size,
        "bytes": len(blob),
        "peer_bytes": peer,
        "ratio": len(blob) / max(peer, 1),
        "encode_s": encoded - began,
        "decode_s": decoded - encoded,
    }


def main() -> None:
    """Train, compare each pair, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-6, 1e-5])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for rate in given.rates:
        before: NDArray[np.uint16] | None = None
        for step, words in enumerate(checkpoints(rate, given.steps)):
            if before is not None:
                found = compare(before, words)
                rows.append({"rate": rate, "step": step, **found})
                print(
                    f"rate {rate:g} step {step}: {found['changed']:.2%} of {found['words']:,} words changed, {found['bytes']:,} bytes, "
                    f"indices and values {found['peer_bytes']:,}: {found['ratio']:.3f} x; encode {found['encode_s']:.1f} s, "
                    f"decode {found['decode_s']:.1f} s",
                    flush=True,
                )
            before = words
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
