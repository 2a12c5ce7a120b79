"""Commands that measure this machine: bench pool."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compeft_client.cli.options import AsFormat, EdgeConfig, takes_edge
from compeft_client.cli.progress import stages
from compeft_client.durable_files import write_durably
from compeft_client.identity.edge_config import edge_of

if TYPE_CHECKING:
    from compeft_client.models.pool_benchmark import PoolMeasures
    from compeft_client.models.traffic_benchmark import TrafficMeasures

app = typer.Typer()
bench = typer.Typer(help="Measure this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.callback()
def _group() -> None:
    """A group even while it has one command."""


@bench.command("pool")
@takes_edge
def bench_pool(
    edge: EdgeConfig,
    parameters: Annotated[int, typer.Option(min=41_472, help="parameters of one expert, to the nearest rank")] = 20_000_000,
    experts: Annotated[int, typer.Option(min=2, help="experts to switch between")] = 4,
    density: Annotated[float, typer.Option(help="fraction of the changes that each keeps")] = 0.05,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes cuda where there is one")] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="also write JSON here, for `compeft report --pool`")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="also tell the aggregator, for its report's section on GPU use")
    ] = False,
    traffic: Annotated[
        Literal["even", "zipf"] | None,
        typer.Option(help="instead: batches whose rows want different experts, beside PEFT's mixed batch and hot swap (CPU)"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="with --traffic: rows of a batch")] = 32,
    tokens: Annotated[int, typer.Option(min=1, max=512, help="with --traffic: tokens of a row")] = 16,
    output_format: AsFormat = "text",
) -> None:
    """How many experts fit in a gigabyte and how fast they switch, beside bfloat16 adapters on the local disk.

    Examples: compeft bench pool; compeft bench pool --device cuda --parameters 160000000 -o pool.json;
    compeft bench pool --report --site ~/.compeft; compeft bench pool --experts 1024 --traffic zipf
    """
    import torch

    from compeft_client.exchange.pool_reports import report_pool
    from compeft_client.models.pool_benchmark import measure_pool, unused

    if traffic is not None:
        _bench_traffic(experts, traffic, rows, tokens, output, output_format)
        return

    us = edge_of(edge) if report else None
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with stages("bench pool") as tell:
        found = measure_pool(
            parameters, experts, density, chosen, tell, unused if us is None else lambda usage: report_pool(us, usage, "bench")
        )
    values = asdict(found) | {"experts_per_gb": found.experts_per_gb, "bf16_experts_per_gb": found.bf16_experts_per_gb}
    if output:
        write_durably(output, json.dumps(values, indent=1).encode())
    typer.echo(json.dumps(values) if output_format == "json" else _text(found))


def _bench_traffic(
    experts: int, traffic: Literal["even", "zipf"], rows: int, tokens: int, output: Path | None, output_format: str
) -> None:
    from compeft_client.models.traffic_benchmark import measure_traffic

    with stages("bench pool") as tell:
        found = measure_traffic(experts, traffic, rows, tokens, tell=tell)
    values = asdict(found) | {"ready_times": found.ready_times, "coded_times": found.coded_times}
    if output:
        write_durably(output, json.dumps(values, indent=1).encode())
    typer.echo(json.dumps(values) if output_format == "json" else _traffic_text(found))


def _traffic_text(m: "TrafficMeasures") -> str:
    def row(name: str, rate: float, p95: float) -> str:
        return f"{name:<28} {rate:>10.1f} {1000 * p95:>12.0f} {m.requests_per_s / rate:>14.2f}x"

    return "\n".join(
        [
            f"{m.experts:,} experts, {m.traffic} traffic, batches of {m.rows} rows of {m.tokens} tokens, encoder of MiniLM's shape",
            f"{'':<28} {'requests/s':>10} {'p95 ms':>12} {'BatchPool is':>15}",
            row("BatchPool", m.requests_per_s, m.p95_s),
            row("PEFT, mixed batch", m.mixed_requests_per_s, m.mixed_p95_s),
            row("PEFT, hot swap", m.hotswap_requests_per_s, m.hotswap_p95_s),
            f"{'base model alone':<28} {m.base_requests_per_s:>10.1f}",
            f"largest difference of a row from the row alone: {m.largest_difference:.1e} (the experts change up to {m.largest_change:.1f})",
            f"an expert ready to apply: {m.ready_bytes:,.0f} bytes, {m.ready_times:.0f}x fewer than bfloat16; as it is coded: "
            f"{m.coded_bytes:,.0f} bytes, {m.coded_times:.0f}x fewer; decoding one: {1000 * m.decode_s:.1f} ms",
            "requests/s are by processor seconds, p95 is of a batch by the clock",
        ]
    )


def _text(m: "PoolMeasures") -> str:
    rows = [
        ("", "packed", "bfloat16", "ratio"),
        ("one expert, bytes", f"{m.expert_bytes:,}", f"{m.bf16_bytes:,}", f"{m.bf16_bytes / m.expert_bytes:.1f}x fewer"),
        ("experts per GB", f"{m.experts_per_gb:,.0f}", f"{m.bf16_experts_per_gb:,.0f}", ""),
        (
            "switch, ms",
            f"{1000 * m.switch_s:.1f}",
            f"{1000 * m.bf16_hotswap_s:.1f}",
            f"{m.bf16_hotswap_s / m.switch_s:.2f}x faster",
        ),
        ("  not in memory yet", f"{1000 * m.switch_from_disk_s:.1f}", f"{1000 * m.bf16_load_s:.1f} (bare read and copy)", ""),
        ("back to base, ms", f"{1000 * m.back_to_base_s:.2f}", "", ""),
    ]
    head = f"{m.parameters:,} parameters an expert, density {100 * m.density:g} %, {m.experts} experts, {m.device}"
    return "\n".join([head, *(f"{a:<22} {b:>12}  {c:>30}  {d}".rstrip() for a, b, c, d in rows)])
