"""Puts the example apps on the import path, as Flower does with an app it installs."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES / "sentiment"), str(EXAMPLES / "flower-existing" / "compressed")]
