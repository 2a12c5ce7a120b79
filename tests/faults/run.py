"""The long storm: `python -m tests.faults.run --kills 200 [--clients 4] [--seed 0] [--folder DIR]`. Prints counts."""

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults.storm import Storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill")
    parser.add_argument("--clients", type=int, default=4, help="how many clients")
    parser.add_argument("--seed", type=int, default=0, help="decides who is killed when")
    parser.add_argument("--folder", type=Path, help="where to leave everything; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        started = time.monotonic()
        with Storm(options.folder or Path(temporary), options.clients, options.seed) as storm:
            print(storm.run(options.kills))
        print(f"seed {options.seed}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
