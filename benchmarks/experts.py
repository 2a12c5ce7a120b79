"""Real experts for benchmarks: PEFT folders that all started from the one beside them called `initial*`."""

from pathlib import Path

import numpy as np

from compeft_core import Layout, flatten, layout_of

FOLDER = Path("../shared/data/experts")
FILE = "adapter_model.safetensors"


def load(folder: Path) -> dict[str, tuple[Layout, np.ndarray]]:
    """Name -> layout and task vector (expert minus initial)."""
    from safetensors.numpy import load_file

    initial = next(folder.glob("initial*"))
    start = load_file(initial / FILE)
    layout = layout_of({name: array.shape for name, array in start.items()})
    base = flatten(layout, start)
    folders = sorted(path.parent for path in folder.glob(f"*/{FILE}") if path.parent != initial)
    return {path.name: (layout, flatten(layout, load_file(path / FILE)) - base) for path in folders}
