"""`compeft weights-digest`: which base model is this? The digest that an expert is bound to."""

import json
from pathlib import Path
from typing import Annotated

import typer

from compeft_client.checkpoints.base_model_digest import weights_digest
from compeft_client.cli.options import AsFormat

app = typer.Typer()


@app.command("weights-digest")
def weights_digest_command(
    path: Annotated[Path, typer.Argument(help="a .safetensors file, or a checkpoint's folder, whole or sharded")],
    output_format: AsFormat = "text",
) -> None:
    """Print the weights digest of a base model: the same for the same tensors, however they are stored.

    Example: compeft weights-digest ./all-MiniLM-L6-v2
    """
    digest = weights_digest(path).hex()
    typer.echo(json.dumps({"path": str(path), "weights_digest": digest}) if output_format == "json" else digest)
