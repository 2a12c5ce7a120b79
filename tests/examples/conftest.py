"""Puts the example app on the import path, as Flower does with the app it installs."""

import sys
from pathlib import Path

APP = Path(__file__).parents[2] / "examples" / "sentiment"
sys.path.insert(0, str(APP))
