"""A site folder: what `compeft enroll` wrote, under the names of the options that it replaces.

Nothing is read from a folder that anybody but its owner may enter.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from compeft_client.durable_files import read_file, write_durably
from compeft_core.errors import InputError
from compeft_proto.site_layout import FILES, INDEX, site_options


def complete(config: Mapping[str, object]) -> dict[str, object]:
    """A client's options with those that are not given taken from the site folder, if `site` names one.

    Errors: as `read_site`.
    """
    given = {name: value for name, value in config.items() if value is not None and value != ""}
    return {**read_site(Path(str(given["site"]))), **given} if "site" in given else given


def read_site(folder: Path) -> dict[str, object]:
    """The options that a site folder holds. Errors: InputError if it is invalid, ForbiddenError if others may enter it."""
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is not a site folder, it has no {INDEX}: make one with `compeft enroll`")
    present = {file for file in FILES.values() if (folder / file).exists()}
    found = site_options(str(folder), folder.stat().st_mode, read_file(folder / INDEX), present)
    return {**found, "state-dir": f"{folder}/{FILES['state-dir']}"}


def write_index(folder: Path, values: Mapping[str, str]) -> None:
    """Make the folder a site folder: all its other files are there."""
    write_durably(folder / INDEX, json.dumps(dict(values), indent=1).encode(), mode=0o600)
