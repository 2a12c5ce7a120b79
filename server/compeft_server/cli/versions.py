"""Commands about experts and their versions, run on the aggregator's machine: log, lineage, verify-merge, rollback, forget."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from compeft_core.errors import InputError
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.clock import now_ms
from compeft_proto.name_checks import printable
from compeft_proto.site_layout import HEAD_FILE
from compeft_server.admin.audit_check import verify_against, verify_log
from compeft_server.admin.lineage import VersionOrigin
from compeft_server.admin.members_admin import keyid_of
from compeft_server.app.opened import opened
from compeft_server.cli.experts import experts
from compeft_server.cli.options import AsFormat, Data, ExpertName
from compeft_server.ledger.checks.recorded_rows import RECORD

app = typer.Typer()
audit_app = typer.Typer(help="The append-only log of decisions.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(experts, name="experts")


@experts.command("log")
def experts_log(name: ExpertName, data: Data, output_format: AsFormat = "text") -> None:
    """Show where every version comes from: round, method, density, bytes, contributors and their weights.

    Example: compeft experts log sentiment --data /var/lib/compeft
    """
    with opened(data) as there:
        origins = there.versions.lineage(name)
    if output_format == "json":
        typer.echo(json.dumps([_as_json(origin) for origin in origins]))
        return
    for origin in origins:
        typer.echo(_as_text(origin))


@app.command("lineage")
def lineage(
    name: ExpertName,
    data: Data,
    version: Annotated[int | None, typer.Option(help="the version; the newest by default")] = None,
    output_format: AsFormat = "text",
) -> None:
    """Name one version's contributors: digest of each signed update, key, sequence number, weight.

    Example: compeft lineage sentiment --version 3 --data /var/lib/compeft
    """
    with opened(data) as there:
        origins = there.versions.lineage(name)
    if version is not None and not 0 <= version < len(origins):
        raise InputError(f"{name} has versions 0 to {len(origins) - 1}, not {version}")
    origin = origins[-1 if version is None else version]
    if output_format == "json":
        typer.echo(json.dumps(_as_json(origin)))
        return
    typer.echo(_as_text(origin))
    for member, c in origin.contributors:
        more = (f"  {c.staleness} versions late" if c.staleness else "") + ("  left out" if c.left_out else "")
        update, key = c.update_digest.hex()[:16], c.keyid[:16]
        typer.echo(f"  {printable(member):<24} update {update}  key {key}  number {c.sequence}  weight {c.weight:g}{more}")


@app.command("verify-merge")
def verify_merge(
    name: ExpertName,
    data: Data,
    version: Annotated[int | None, typer.Option(help="the version; all of them by default")] = None,
) -> None:
    """Recompute versions from their stored, signed inputs and hold them against what was signed, bit for bit.

    Example: compeft verify-merge sentiment --data /var/lib/compeft
    """
    with opened(data) as there:
        for number in range(len(there.versions.lineage(name))) if version is None else [version]:
            there.versions.verify(name, number)
            typer.echo(f"{name} version {number} recomputes bit for bit")


@experts.command("rollback")
def experts_rollback(
    name: ExpertName, version: Annotated[int, typer.Argument(help="the version to go back to")], data: Data
) -> None:
    """Append a version with the state of an earlier one; clients follow at their next sync. The log keeps everything.

    Example: compeft experts rollback sentiment 3 --data /var/lib/compeft
    """
    with opened(data) as there:
        made = there.versions.roll_back(name, version, now_ms())
    typer.echo(f"{name} version {made.version} has the state of version {version}")


@app.command("forget")
def forget(name: ExpertName, member: Annotated[str, typer.Argument(help="the client's enrolled name")], data: Data) -> None:
    """Append a version as if one client had never contributed: every merge is done again without its updates.

    Example: compeft forget sentiment berlin-1 --data /var/lib/compeft
    """
    with opened(data) as there:
        made = there.versions.forget(name, keyid_of(there.ledger, member), now_ms())
    typer.echo(f"{name} version {made.version} is merged without {member}")


@audit_app.command("log")
def audit_log(
    data: Data,
    output_format: AsFormat = "text",
    everything: Annotated[bool, typer.Option("--all", help="also the entries that cover transfers and metrics")] = False,
) -> None:
    """Show every decision: enrolments, refusals with their reasons, rounds, versions.

    Example: compeft audit log --data /var/lib/compeft --format json
    """
    with opened(data) as there:
        entries = there.ledger.audit_entries()
    for entry in entries:
        if entry.event.action == RECORD and not everything:
            continue
        event, when = entry.event, _when(entry.event.at_ms)
        if output_format == "json":
            fields = {"number": entry.number, "at_ms": event.at_ms, "action": event.action, "subject": event.subject}
            typer.echo(json.dumps(fields | {"detail": json.loads(event.detail), "hash": entry.hash.hex()}))
        else:
            typer.echo(f"{entry.number:>6}  {when}  {event.action:<12} {printable(event.subject):<24} {printable(event.detail)}")


@audit_app.command("verify")
def audit_verify(
    data: Data,
    against: Annotated[
        list[Path] | None, typer.Option(help="a site folder, or a checkpoint file: what it remembers must be in the log")
    ] = None,
) -> None:
    """Check that no entry was altered, dropped or inserted, that keys, rules, rounds, transfers and metrics are what the log says, and
    that it begins with every head that was signed before.

    Example: compeft audit verify --data /var/lib/compeft --against /media/berlin-1
    """
    with opened(data) as there:
        found = verify_log(there.ledger)
        own = [data / HEAD_FILE] if (data / HEAD_FILE).exists() else []
        heads = verify_against(there.ledger, [*own, *(against or [])], (there.key.public, *there.earlier))
    typer.echo(f"{found.entries} entries hold, the newest is {found.hash.hex()}, their root {found.root.hex()}")
    typer.echo(
        f"{sum(found.rows.values())} rows agree: {', '.join(f'{count} {table}' for table, count in found.rows.items() if count)}"
    )
    for path, head in heads:
        typer.echo(f"the log begins with the {head.size} entries that {path} remembers")


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _as_json(origin: VersionOrigin) -> dict[str, object]:
    return {
        "version": origin.version,
        "state_digest": origin.state_digest.hex(),
        "run": origin.run,
        "round": origin.round,
        "created_at_ms": origin.created_at_ms,
        "payload_bytes": origin.payload_bytes,
        "merge_method": origin.merge_method,
        "merge_parameters": origin.merge_parameters,
        "density": origin.compression.density if origin.compression else None,
        "scale": origin.compression.scale if origin.compression else None,
        "rolled_back_to": origin.rolled_back_to,
        "forgotten": list(origin.forgotten),
        "publisher": origin.publisher,
        "optimizer": asdict(origin.optimizer) if origin.compression else None,
        "contributors": [
            {
                "name": name,
                "update": c.update_digest.hex(),
                "keyid": c.keyid,
                "sequence": c.sequence,
                "weight": c.weight,
                "left_out": c.left_out,
                "staleness": c.staleness,
            }
            for name, c in origin.contributors
        ],
    }


def _as_text(origin: VersionOrigin) -> str:
    state, size = origin.state_digest.hex()[:16], f"{origin.payload_bytes:,}"
    head = f"version {origin.version:<5} {_when(origin.created_at_ms)}  state {state}  {size:>10} bytes  "
    if origin.rolled_back_to is not None:
        return f"{head}rolled back to version {origin.rolled_back_to}"
    if origin.forgotten:
        return f"{head}merged again without {', '.join(key[:16] for key in origin.forgotten)}"
    if origin.publisher:
        return f"{head}pushed by {origin.publisher}"
    if origin.compression is None:
        return f"{head}published"
    names = ", ".join(sorted(f"{name} (left out)" if c.left_out else name for name, c in origin.contributors))
    told = "".join(f" {name}={value:g}" for name, value in origin.merge_parameters.items())
    told += "" if origin.optimizer == ServerOptimizer() else f" by {origin.optimizer.name}"
    return f"{head}round {origin.round}, {origin.merge_method}{told} at {origin.compression.density:g} of {names}"
