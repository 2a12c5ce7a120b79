"""Commands of an edge site: keys, join. Each parses its options, calls one function, prints what came out."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from compeft_client.cli.options import AsFormat, EdgeConfig, takes_edge
from compeft_client.durable_files import write_durably
from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.key_files import load_public_key, load_signing_key
from compeft_core.errors import InputError
from compeft_proto.keys import new_key

app = typer.Typer()
keys = typer.Typer(help="Make and show keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command("new")
def keys_new(file: Path, output_format: AsFormat = "text") -> None:
    """Make an Ed25519 key: FILE (private, mode 0600) and FILE with .pub (public, for the aggregator's operator).

    Example: compeft keys new edge.key
    """
    if file.exists():
        raise InputError(f"{file} exists already: a key is never overwritten")
    key = new_key()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, key.to_pem(), mode=0o600)
    public = file.with_suffix(".pub")
    write_durably(public, key.public.to_pem())
    _print_key(key.keyid, {"private": str(file), "public": str(public)}, output_format)


@keys.command("show")
def keys_show(file: Path, output_format: AsFormat = "text") -> None:
    """Show the keyid of a private or a public key file.

    Example: compeft keys show edge.pub
    """
    public = load_public_key(file) if file.suffix == ".pub" else load_signing_key(file).public
    _print_key(public.keyid, {"file": str(file)}, output_format)


@app.command()
@takes_edge
def join(
    superlink: Annotated[str, typer.Option(help="host:port of Flower's SuperLink")],
    edge: EdgeConfig,
    insecure: Annotated[bool, typer.Option(help="reach the SuperLink without TLS (loopback only)")] = False,
    superlink_ca: Annotated[Path | None, typer.Option(help="PEM of the authority behind the SuperLink's certificate")] = None,
    node_key: Annotated[Path | None, typer.Option(help="private key for Flower's own node authentication")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="this SuperNode's own runtime port on loopback")] = 9094,
    max_update: Annotated[
        str | None, typer.Option(help="most bytes of one update, such as 200kB; lowers the density where needed")
    ] = None,
    max_upload: Annotated[
        float | None, typer.Option(help="most seconds of one upload, at the rate of the one before; lowers the density likewise")
    ] = None,
    config: Annotated[list[str] | None, typer.Option("-c", "--config", help="more node configuration, name=value")] = None,
) -> None:
    """Join a federation as an edge client: a Flower SuperNode whose apps reach the aggregator with this key.

    Examples: compeft join --site /var/lib/compeft-edge --superlink fl.example:8000 --superlink-ca ca.crt -c partition-id=0

    compeft join --superlink fl.example:8000 --superlink-ca ca.crt --aggregator agg.example:9443 --tls-ca ca.crt
    --tls-cert edge.crt --tls-key edge.pem --aggregator-key aggregator.pub --key edge.key --state-dir /var/lib/compeft -c partition-id=0
    """
    edge = {**edge, "max-update": max_update} if max_update else edge
    edge = {**edge, "max-upload-s": max_upload} if max_upload is not None else edge
    edge_of(edge)  # says now, in one line, what would otherwise fail in the first round
    pairs = [f"{name}={json.dumps(str(value))}" for name, value in edge.items()] + list(config or ())
    arguments = ["--superlink", superlink, "--port", str(port), "--node-config", " ".join(pairs)]
    arguments += ["--insecure"] if insecure else []
    arguments += ["--root-certificates", str(superlink_ca)] if superlink_ca else []
    arguments += ["--auth-supernode-private-key", str(node_key)] if node_key else []
    _become("flower-supernode", arguments)


def _print_key(keyid: str, files: dict[str, str], output_format: str) -> None:
    if output_format == "json":
        typer.echo(json.dumps({"keyid": keyid, **files}))
    else:
        typer.echo("\n".join([f"keyid    {keyid}", *(f"{name:<8} {path}" for name, path in files.items())]))


def _become(program: str, arguments: Sequence[str]) -> None:
    """Replace this process by a program that lies beside this Python, or on PATH. Errors: InputError."""
    beside = str(Path(sys.executable).parent)  # of a virtual environment, also where it was not activated
    path = shutil.which(program, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    if path is None:
        raise InputError(f"{program} is neither in {beside} nor on PATH: pip install 'compeft[client]'")
    try:
        os.execv(path, [program, *arguments])  # noqa: S606  # no shell: the point of exec
    except OSError as error:
        raise InputError(f"cannot start {path}: {error.strerror}") from error
