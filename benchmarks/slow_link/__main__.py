"""Time from *trained* to *applied everywhere* over slow links, this exchange against dense weights: `python -m benchmarks.slow_link`.

Each client has a link of its own, with a rate, a latency and a loss (link.py says what is modelled). Timed is one round: every client
compresses, seals and submits; the aggregator checks, merges and publishes; every client syncs and has applied the new version. The peer
(dense.py) moves bf16 or fp32 through plain gRPC streams over the same links and averages in numpy.

A dense arm that would take longer than --limit seconds at the full size is run at an 80th and a 40th of it, and what is printed is the
straight line through the two, marked `~`. How well the line foretells is printed too, from an arm that is run at all three sizes. All
clients and the aggregator share this machine's cores.

Prints a table, and on the last line one JSON object; --docs also writes slow-link.json and slow-link.svg there.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.slow_link.dense import WIDTHS, dense
from benchmarks.slow_link.link import Link
from benchmarks.slow_link.ours import Way, ours
from benchmarks.slow_link.picture import draw
from benchmarks.slow_link.stages import PROCESSOR, STAGES, Outcome, race
from benchmarks.slow_link.work import lora_layout

LINKS = (Link(1e6, 0.1, 0.001), Link(10e6, 0.04, 0.0005), Link(100e6, 0.02, 0.0001))
WAYS = (Way(0.05, 0.2, "context"), Way(0.05, 0.05, "context"), Way(0.05, 0.05, "rice"))
SMALL = (80, 40)
"""An arm that would take too long is run at these fractions of the size."""
BAR_LINK, BAR, PEER = "10 Mbit/s", 25.0, "dense bf16"


@dataclass(frozen=True, slots=True)
class Row:
    """An arm over a link; `error` is by how much the straight line missed what was measured, if that was tried."""

    link: str
    arm: str
    outcome: Outcome
    extrapolated: bool = False
    error: float | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every arm over every link."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000_000, help="parameters")
    parser.add_argument("--clients", type=int, default=4, help="clients, each with a link of its own")
    rates = [link.bits_per_s / 1e6 for link in LINKS]
    parser.add_argument("--mbit", type=float, nargs="+", choices=rates, help="only links of these rates")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that a dense arm may take at the full size")
    parser.add_argument("--docs", type=Path, help="folder to write slow-link.json and slow-link.svg to")
    options = parser.parse_args(arguments)
    machine = f"{options.clients} clients, {os.cpu_count()} cores shared by all, load {os.getloadavg()[0]:.1f} at the start"
    rows = [
        row
        for link in LINKS
        if not options.mbit or link.bits_per_s / 1e6 in options.mbit
        for row in over(link, options.size, options.clients, options.limit)
    ]
    show(rows, f"{options.size:,} parameters, {machine}")
    figures = {
        "size": options.size,
        "machine": machine,
        "links": [asdict(link) for link in LINKS],
        "rows": [asdict(row) for row in rows],
    }
    if options.docs:
        (options.docs / "slow-link.json").write_text(json.dumps(figures, indent=1) + "\n")
        draw(options.docs / "slow-link.svg", rows, options.size, machine)
    print(json.dumps(figures))


def over(link: Link, size: int, clients: int, limit_s: float) -> list[Row]:
    """All arms over one link."""
    rows = []
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder, ours(Path(folder), size, way, clients) as arm:
            rows.append(Row(link.name, way.name, race(arm, link)))
            _tell(rows[-1])
    for kind in WIDTHS:
        rows.append(dense_row(link, size, kind, clients, limit_s))
        _tell(rows[-1])
    return rows


def dense_row(link: Link, size: int, kind: str, clients: int, limit_s: float) -> Row:
    """A dense arm, at full size where that is quick enough; the straight line is tried where both are to be had at little cost."""
    name, foreseen = f"dense {kind}", 2 * 8 * WIDTHS[kind] * size / link.bits_per_s
    if foreseen > limit_s:
        return Row(link.name, name, _line(link, size, kind, clients), extrapolated=True)
    measured = _dense(link, size, kind, clients)
    if foreseen < limit_s / 2:
        return Row(link.name, name, measured)
    return Row(link.name, name, measured, error=_line(link, size, kind, clients).seconds / measured.seconds - 1)


def _dense(link: Link, size: int, kind: str, clients: int) -> Outcome:
    with dense(size, kind, clients) as arm:
        return race(arm, link)


def _line(link: Link, size: int, kind: str, clients: int) -> Outcome:
    """The straight line through two small sizes, at `size`; of each stage, and of the bytes."""
    small, large, full = (lora_layout(part).size for part in (size // SMALL[0], size // SMALL[1], size))
    low, high = _dense(link, small, kind, clients), _dense(link, large, kind, clients)
    reach = (full - small) / (large - small)
    at = lambda a, b: a + (b - a) * reach  # noqa: E731
    stages = {stage: at(low.stages[stage], high.stages[stage]) for stage in STAGES}
    processor = {part: at(low.processor[part], high.processor[part]) for part in PROCESSOR}
    up, down = at(low.up_bytes, high.up_bytes), at(low.down_bytes, high.down_bytes)
    return Outcome(sum(stages.values()), stages, round(up), round(down), processor)


def _tell(row: Row) -> None:
    print(f"... {row.link}, {row.arm}: {row.outcome.seconds:.1f} s", flush=True)


def show(rows: Sequence[Row], subject: str) -> None:
    """The tables, and the bar."""
    peers = {row.link: row.outcome for row in rows if row.arm == PEER}
    print(f"\nSeconds from trained to applied everywhere: {subject}")
    print(
        f"{'link':12}{'arm':34}{'seconds':>9}{'faster':>8}   "
        + "".join(f"{s:>9}" for s in STAGES)
        + f"{'MB up':>9}{'MB down':>9}"
    )
    for row in rows:
        found, mark = row.outcome, "~" if row.extrapolated else ""
        stages = "".join(f"{found.stages[s]:9.2f}" for s in STAGES) + f"{found.up_bytes / 1e6:9.2f}{found.down_bytes / 1e6:9.2f}"
        ratio = peers[row.link].seconds / found.seconds
        print(f"{row.link:12}{row.arm:34}{mark + format(found.seconds, '.2f'):>9}{ratio:7.1f}x   {stages}")
    print("\nThe same with machines of their own: the links as measured, plus one processor's seconds for everything else")
    print(f"{'link':12}{'arm':34}{'seconds':>9}{'faster':>8}   {'links':>9}" + "".join(f"{p:>16}" for p in PROCESSOR))
    for row in rows:
        found, mark = row.outcome, "~" if row.extrapolated else ""
        links = found.stages["up"] + found.stages["down"]
        parts = f"{links:9.2f}" + "".join(f"{found.processor[p]:16.2f}" for p in PROCESSOR)
        ratio = peers[row.link].alone_s / found.alone_s
        print(f"{row.link:12}{row.arm:34}{mark + format(found.alone_s, '.2f'):>9}{ratio:7.1f}x   {parts}")
    print("faster: than dense bf16. ~: a straight line through two smaller sizes")
    for row in rows:
        if row.error is not None:
            print(f"the straight line misses {row.arm} at {row.link} by {row.error:+.1%}")
        if row.link == BAR_LINK and row.arm.startswith("ours"):
            peer = peers[row.link]
            here, alone = peer.seconds / row.outcome.seconds, peer.alone_s / row.outcome.alone_s
            print(
                f"at {BAR_LINK}, {row.arm}: {here:.1f}x dense bf16 here, {alone:.1f}x on machines of their own; the bar is {BAR:.0f}x"
            )


if __name__ == "__main__":
    main()
