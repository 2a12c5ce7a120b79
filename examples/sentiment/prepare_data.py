"""Makes the rows of this example from the rated sentences of Hutto & Gilbert (ICWSM 2014).

Needs the source distribution of the PyPI package vaderSentiment 3.3.2 (its wheel lacks the data):

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python prepare_data.py vaderSentiment-3.3.2.tar.gz

The rule, a domain: keep a sentence whose mean human rating is at least 0.5 away from zero, label it by the sign, undo HTML
entities, drop repeated texts, order by a hash (no random numbers: the same rows on every machine), and deal positive and negative
in turn to test, valid and train. The archive is checked against its SHA-256 first. Nothing else is read or written.
"""

import hashlib
import html
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parent / "sentiment" / "data"
ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
SOURCES = {
    "editorials": "nytEditorialSnippets",
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
}
SPLITS = (("test", 250), ("valid", 100), ("train", 300))
LEAST_RATING = 0.5

Row = tuple[str, str]


def main(sdist: Path) -> None:
    """Write data/<domain>/<split>.jsonl for all four domains."""
    with tarfile.open(fileobj=io.BytesIO(rated_sentences(sdist))) as archive:
        for domain, source in SOURCES.items():
            text = read(archive, f"hutto_ICWSM_2014/{source}_GroundTruth.txt").decode()
            for split, rows in split_rows(labelled(text)).items():
                write(DATA / domain / f"{split}.jsonl", rows)


def rated_sentences(sdist: Path) -> bytes:
    """The checked inner archive of the source distribution at `sdist`. Exits with one line if it is not the one expected."""
    with tarfile.open(sdist) as outer:
        content = read(outer, ARCHIVE)
    found = hashlib.sha256(content).hexdigest()
    if found != ARCHIVE_SHA256:
        sys.exit(f"{ARCHIVE} has SHA-256 {found}, expected {ARCHIVE_SHA256}")
    return content


def read(archive: tarfile.TarFile, name: str) -> bytes:
    """The bytes of one member."""
    member = archive.extractfile(name)
    if member is None:
        sys.exit(f"{name} is not a file in the archive")
    return member.read()


def labelled(ground_truth: str) -> Iterator[Row]:
    """(label, text) of every sentence with a clear rating; lines are `id TAB mean rating TAB text`."""
    for line in ground_truth.splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= LEAST_RATING:
            yield "pos" if float(rating) > 0 else "neg", html.unescape(text).strip()


def split_rows(rows: Iterator[Row]) -> dict[str, list[Row]]:
    """Balanced splits of fixed size, positive and negative in turn. A text under two labels keeps the first."""
    unique = {text: label for label, text in reversed(list(rows))}
    ordered = sorted(((label, text) for text, label in unique.items()), key=place)
    both = [[row for row in ordered if row[0] == label] for label in ("pos", "neg")]
    dealt = [row for pair in zip(*both, strict=False) for row in pair]
    splits, start = {}, 0
    for split, size in SPLITS:
        splits[split] = dealt[start : start + size]
        start += size
    return splits


def place(row: Row) -> bytes:
    """The key that shuffles: SHA-256 of the text."""
    return hashlib.sha256(row[1].encode()).digest()


def write(path: Path, rows: list[Row]) -> None:
    """One JSON object a line: {"label": ..., "text": ...}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"label": label, "text": text}, ensure_ascii=False) + "\n" for label, text in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: prepare_data.py vaderSentiment-3.3.2.tar.gz")
    main(Path(sys.argv[1]))
