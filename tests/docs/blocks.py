"""The fenced blocks of a Markdown page, and the commands in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
RUN, NOT_RUN = "bash run", "bash not-run"
PROGRAMS = r"(?:compeft|flwr|flower-\w+|make|pip|python3?|pytest|git|export|docker|helm|kubectl|curl|systemctl|apt-get)"


@dataclass(frozen=True)
class Block:
    """`info`: what follows the opening fence. `line`: its number in the page, from 1."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def has_commands(self) -> bool:
        """Whether a line starts as a command does; a `text` block, such as a drawing, has none."""
        if self.info == "text":
            return False
        return any(re.match(rf"\s*(?:\$ )?{PROGRAMS} \S", line) for line in self.text.splitlines())


def blocks_of(page: Path, info: str | None = None) -> list[Block]:
    """All fenced blocks of a page, or those with this info string, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"(?ms)^```([^`\n]*)\n(.*?)^```$", text)
    blocks = [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in found]
    return [block for block in blocks if info is None or block.info == info]


def script_of(page: Path) -> str:
    """The blocks of a page that are to be run, as one script that stops at the first failure and announces each block."""
    parts = [f"echo '== {page.name}:{block.line}'\n{block.text}" for block in blocks_of(page, RUN)]
    return "set -euo pipefail\n" + "\n".join(parts)
