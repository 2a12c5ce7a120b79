"""What each way of coding an expert keeps of its gain, and at how many bytes; what is finished is not run again.

    python -m benchmarks.product                   trains the experts that the cache lacks, then everything: hours on two cores
    python -m benchmarks.product --kinds minilm    the encoder's experts alone: an hour
    python -m benchmarks.product --quick           one small expert and a few ways, nothing kept: a minute
    python -m benchmarks.product --report          the tables of what was run

Each measurement is one line of JSON in --results. The tasks named `pairs_*`, `intent` and `scenario` need --data; without it the
others are run. The last line printed is one JSON object of the means.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.product.evidence import KINDS, Evaluator, Expert, experts, gain_kept, read_expert
from benchmarks.product.making import make_experts, quick_expert, statistics_of
from benchmarks.product.report import Row, goals, means, rows_of, table
from benchmarks.product.ways import AWARE, WAYS, problem_of

RESULTS = Path("docs/benchmarks/product.jsonl")
QUICK_WAYS = ("product space 100 x", "product space 200 x", "LoRAQuant 2 bit @ 0.9", "nf4 of A and B", "SVD in bf16, 100 x")


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--experts", nargs="+", help="only these of those that there are")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tasks that no package carries")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", nargs="+", default=[], metavar="WAY", help="run these anew")
    parser.add_argument("--quick", action="store_true", help="one small expert, a few ways, no file")
    parser.add_argument("--trained", action="store_true", help="train nothing: only the experts that the cache has")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks transformers
    found = _quick() if given.quick else _all(given)
    print(table(found))
    print(goals(found))
    print(json.dumps(means(found)))


def _quick() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        return _measured(Evaluator(), read_expert(quick_expert(Path(scratch)), "minilm"), QUICK_WAYS)


def _all(given: argparse.Namespace) -> list[Row]:
    if not (given.report or given.trained):
        make_experts(given.kinds, given.data)
    wanted = [e for e in experts(tuple(given.kinds)) if not given.experts or e.name in given.experts]
    done = (
        {}
        if given.report
        else {(row.expert, row.way): row for row in rows_of(given.results, wanted) if row.way not in given.again}
    )
    judge = Evaluator()
    for way in [] if given.report else given.ways:
        for expert in wanted:
            if (expert.name, way) not in done:
                for row in _measured(judge, expert, [way]):
                    with given.results.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(asdict(row)) + "\n")
    return rows_of(given.results, wanted)


def _measured(judge: Evaluator, expert: Expert, ways: Sequence[str]) -> list[Row]:
    """Code the expert by each way, score what comes back, print one line each."""
    rows = []
    for way in ways:
        problem = problem_of(expert, statistics_of(expert.kind) if way in AWARE else None)
        began = time.process_time()
        coded = WAYS[way](problem)
        took = time.process_time() - began
        score = judge.score(expert, coded.differences)
        kept = gain_kept(expert, score)
        row = Row(expert.name, expert.kind, expert.digest, way, problem.bf16_bytes, coded.size_bytes, took, kept, coded.quality)
        shown = "  ".join(f"{name} {value:5.2f}" for name, value in row.kept.items())
        print(f"{expert.name:22} {way:34} {row.size_bytes:>10,} bytes  {shown}", flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
