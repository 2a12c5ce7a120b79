"""Commands that measure this machine: bench pool."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compeft_client.cli.options import AsFormat, EdgeConfig, takes_edge
from compeft_client.cli.progress import stages
from compeft_client.durable_files import write_durably
from compeft_client.identity.edge_config import edge_of

if TYPE_CHECKING:
    from compeft_client.models.pool_benchmark import PoolMeasures

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
    output_format: AsFormat = "text",
) -> None:
    """How many experts fit in a gigabyte and how fast they switch, beside bfloat16 adapters on the local disk.

    Examples: compeft bench pool; compeft bench pool --device cuda --parameters 160000000 -o pool.json;
    compeft bench pool --report --site ~/.compeft
    """
    import torch

    from compeft_client.exchange.pool_reports import report_pool
    from compeft_client.models.pool_benchmark import measure_pool, unused

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
