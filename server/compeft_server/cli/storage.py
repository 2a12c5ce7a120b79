"""Commands about what an aggregator stores, run on its machine: gc, backup, restore."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from compeft_proto.clock import now_ms
from compeft_server.admin.backup import Head, back_up
from compeft_server.admin.garbage_collection import Collected, Grace, collect
from compeft_server.admin.restore import restore
from compeft_server.app.opened import opened
from compeft_server.cli.options import AsFormat, Data

HOUR_MS = 60 * 60 * 1000

app = typer.Typer()


@app.command("gc")
def gc_command(
    data: Data,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, remove nothing")] = False,
    grace_hours: Annotated[int, typer.Option(min=1, help="keep what was stored or asked for since")] = 24,
    part_days: Annotated[int, typer.Option(min=1, help="keep unfinished uploads that got bytes since")] = 7,
    output_format: AsFormat = "text",
) -> None:
    """Remove chunks that no version, update or open round needs, and uploads that were given up. The aggregator may be running.

    Example: compeft gc --data /var/lib/compeft --dry-run
    """
    grace = Grace(grace_hours * HOUR_MS, part_days * 24 * HOUR_MS)
    with opened(data) as there:
        done = collect(there.store, there.ledger, now_ms(), grace, dry_run)
    typer.echo(json.dumps(asdict(done) | {"dry_run": dry_run}) if output_format == "json" else _collected_text(done, dry_run))


@app.command("backup")
def backup_command(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="the tar file to write")],
    output_format: AsFormat = "text",
) -> None:
    """Write ledger, keys and chunks to one file. The aggregator may be running. The file holds its private keys: guard it.

    Example: compeft backup --data /var/lib/compeft -o /backups/compeft-monday.tar
    """
    head = back_up(data, output, now_ms())
    _say(
        f"{output} holds the ledger ({head.ledger_bytes:,} bytes), {len(head.files)} private files and {head.chunks:,} chunks",
        output,
        head,
        output_format,
    )


@app.command("restore")
def restore_command(
    archive: Annotated[Path, typer.Argument(help="a file that `compeft backup` wrote")],
    data: Annotated[Path, typer.Option(help="the new data directory")],
    output_format: AsFormat = "text",
) -> None:
    """Make a data directory from a backup, all of it or nothing. Serve it with `compeft serve --data`.

    Example: compeft restore /backups/compeft-monday.tar --data /var/lib/compeft-restored
    """
    head = restore(archive, data)
    _say(f"{data} is restored: its audit log holds and all {head.chunks:,} chunks are there", data, head, output_format)


def _say(text: str, path: Path, head: Head, output_format: str) -> None:
    typer.echo(json.dumps({"path": str(path)} | asdict(head)) if output_format == "json" else text)


def _collected_text(done: Collected, dry_run: bool) -> str:
    verb = "would be removed" if dry_run else "removed"
    return "\n".join(
        [
            f"{done.removed_chunks:>8,} chunks {verb}, {done.removed_bytes:,} bytes",
            f"{done.removed_parts:>8,} unfinished uploads {verb}",
            f"{done.young_chunks:>8,} chunks that nobody needs stay for their grace period",
            f"{done.named_chunks:>8,} chunks are needed, {done.named_bytes:,} bytes",
        ]
    )
