"""Makes the rows of this example from the dialogues of the PyPI package chatterbot-corpus 1.3.3.

    pip download --no-deps chatterbot-corpus==1.3.3
    python prepare_data.py chatterbot_corpus-1.3.3-py2.py3-none-any.whl

A row is a line of dialogue and, as the answer, the language that it is written in. Each of the four sites holds mostly the languages
of its region. The rule: lines of 12 to 90 characters, those that two languages share left out, ordered by a hash (no random numbers: the
same rows on every machine); of every four rows of a site three are of its own languages, and one of another. The wheel is checked against
its SHA-256 first.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = [HERE / version / "language" / "data" for version in ("plain", "compressed")]
WHEEL_SHA256 = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
REGIONS = {
    "north": ("dutch", "german", "swedish"),
    "centre": ("french", "italian"),
    "west": ("portuguese", "spanish"),
    "east": ("english", "indonesian", "turkish"),
}
LANGUAGES = sorted(language for own in REGIONS.values() for language in own)
SPLITS = {"test": 32, "train": 80}
OWN_OF_FOUR = 3
SHORTEST, LONGEST = 12, 90

Row = tuple[str, str]


def main(wheel: Path) -> None:
    """Write data/<site>/<split>.jsonl for all four sites, for both versions of the app."""
    content = wheel.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}")
    pools = {language: iter(lines) for language, lines in by_language(wheel).items()}
    for split, count in SPLITS.items():
        for site, own in REGIONS.items():
            rows = dealt(pools, own, count)
            for folder in FOLDERS:
                write(folder / site / f"{split}.jsonl", rows)


def by_language(wheel: Path) -> dict[str, list[str]]:
    """The lines of each language that no other language has, in the order of their hashes."""
    owners: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            language = name.split("/")[-2] if "/" in name else ""
            if name.endswith(".yml") and language in LANGUAGES:
                for line in utterances(archive.read(name).decode("utf-8")):
                    owners.setdefault(line, set()).add(language)
    ordered = sorted(owners, key=lambda line: hashlib.sha256(line.encode()).digest())
    return {language: [line for line in ordered if owners[line] == {language}] for language in LANGUAGES}


def utterances(text: str) -> Iterator[str]:
    """The lines of dialogue of one file that are neither too short nor too long."""
    for line in text.splitlines():
        spoken = line.strip().lstrip("- ").strip().strip("'\"")
        if line.strip().startswith("-") and SHORTEST <= len(spoken) <= LONGEST:
            yield spoken


def dealt(pools: dict[str, Iterator[str]], own: tuple[str, ...], count: int) -> list[Row]:
    """`count` rows of a site, its own languages and the others each in turn."""
    others = [language for language in LANGUAGES if language not in own]
    rows, turns = [], {True: 0, False: 0}
    for place in range(count):
        mine = place % (OWN_OF_FOUR + 1) < OWN_OF_FOUR
        choice = own if mine else others
        language = choice[turns[mine] % len(choice)]
        turns[mine] += 1
        rows.append((language.capitalize(), next(pools[language])))
    return rows


def write(path: Path, rows: list[Row]) -> None:
    """One JSON object a line: {"answer": ..., "text": ...}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"answer": answer, "text": text}, ensure_ascii=False) + "\n" for answer, text in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: prepare_data.py chatterbot_corpus-1.3.3-py2.py3-none-any.whl")
    main(Path(sys.argv[1]))
