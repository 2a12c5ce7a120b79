"""`compeft warm`: compiles every kernel, so that no later command waits for that."""

import time

import typer

app = typer.Typer()


@app.command("warm")
def warm() -> None:
    """Compile all kernels for this machine's processor. Run it once after an installation or an upgrade, as the user that runs compeft.

    They are kept below NUMBA_CACHE_DIR where that is set, else beside the installed package.

    Example: compeft warm
    """
    from compeft_core.warm import warm

    began = time.perf_counter()
    warm()
    typer.echo(f"kernels are ready, {time.perf_counter() - began:.1f} s")
