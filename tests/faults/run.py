"""The long storms: `python -m tests.faults.run --hours 1` or `--kills 200`, with `[--clients 4] [--seed 0] [--folder DIR]`. Prints counts.

`--kills` kills processes only. `--hours` lets everything happen that `long_storm.py` knows: half of the time on SQLite and a small disk,
half on PostgreSQL and S3.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults import long_storm
from tests.faults.storm import Storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill")
    parser.add_argument("--clients", type=int, default=4, help="how many clients")
    parser.add_argument("--seed", type=int, default=0, help="decides who is killed when")
    parser.add_argument("--folder", type=Path, help="where to leave everything; a temporary folder by default")
    parser.add_argument("--hours", type=float, help="how long, instead of --kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        started = time.monotonic()
        if options.hours is not None:
            for counted in long_storm.run(options.folder or Path(temporary), options.hours, options.clients, options.seed):
                print(counted)
            print(f"seed {options.seed}, {time.monotonic() - started:.0f} s")
            return
        with Storm(options.folder or Path(temporary), options.clients, options.seed) as storm:
            print(storm.run(options.kills))
        print(f"seed {options.seed}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
