"""JSON nested 100,000 deep, which Python's parser leaves with RecursionError, is refused by every reader as malformed input."""

from collections.abc import Callable
from pathlib import Path

import pytest

from compeft_client.checkpoints.source import fields_of
from compeft_client.exchange.state_directory import INDEX, StateDirectory
from compeft_core.errors import CompeftError
from compeft_proto.site_layout import parse_index
from compeft_server.reports.figures.extras import pool_from_json
from compeft_server.reports.formats.json_format import dense_from_json

DEEP = "[" * 100_000


def _state(folder: Path) -> None:
    (folder / INDEX).write_text(DEEP)
    StateDirectory(folder).load()


READERS: dict[str, Callable[[Path], object]] = {
    "the index of a site folder": lambda _: parse_index(DEEP.encode(), "site.json"),
    "an adapter's configuration": lambda _: fields_of(DEEP.encode(), Path("adapter_config.json")),
    "a measured pool": lambda _: pool_from_json(DEEP),
    "a dense run": lambda _: dense_from_json(DEEP),
    "a client's state": _state,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=list(READERS))
def test_deeply_nested_json_is_refused_in_one_line(reader: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(CompeftError) as refused:
        reader(tmp_path)
    assert "\n" not in str(refused.value)
