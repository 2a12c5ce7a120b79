"""Experts served by a real vLLM on the CPU and in BatchPool, beside PEFT: `python -m benchmarks.serving [--prompts N] [--experts N]`.

Makes the engine's environment on the first run (3.5 GB). Prints what was measured, as JSON, a part at a time.
"""

import argparse
import json
from dataclasses import asdict

import torch

from benchmarks.serving.experts import PROMPTS
from benchmarks.serving.vllm_part import vllm_part
from compeft_client.models.traffic_benchmark import measure_traffic


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument(
        "--prompts", type=int, default=PROMPTS, help="prompts whose tokens are compared with PEFT's; 0 leaves vLLM out"
    )
    parser.add_argument("--experts", type=int, default=1024, help="experts of the pool; 0 leaves it out")
    chosen = parser.parse_args()
    if chosen.experts:
        torch.set_num_threads(1)
        measured = measure_traffic(chosen.experts, "even")
        print(json.dumps({"pool": asdict(measured) | {"ready_times": measured.ready_times, "coded_times": measured.coded_times}}))
    if chosen.prompts:
        print(json.dumps({"vllm": vllm_part(chosen.prompts)}))


if __name__ == "__main__":
    main()
