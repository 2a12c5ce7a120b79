"""The benchmark of slow links, at a size that takes seconds: its parts do what its figures rest on."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.slow_link.__main__ import WAYS, main
from benchmarks.slow_link.link import FIRST_WINDOW, Link, SlowStart
from benchmarks.slow_link.link import links as slow_links
from benchmarks.slow_link.stages import STAGES


async def echo_once(address: str, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == sent
    writer.close()
    await writer.wait_closed()


async def through_links(link: Link, sent: bytes) -> list[tuple[int, int]]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with slow_links(target, link, 2) as slow:
        await echo_once(slow.addresses[1], sent)
        passed = [(up.passed, down.passed) for up, down in slow.marks()]
        assert [(up.passed, down.passed) for up, down in slow.marks()] == [(0, 0), (0, 0)]
    server.close()
    await server.wait_closed()
    return passed


def test_a_link_brings_every_byte_both_ways_and_counts_them_for_itself_alone() -> None:
    sent = bytes(range(256)) * 400
    assert asyncio.run(through_links(Link(50e6, 0.01, 0.01), sent)) == [(0, 0), (len(sent), len(sent))]


def test_a_connection_doubles_its_window_each_round_trip_until_the_link_is_full_and_starts_again_after_a_pause() -> None:
    start = SlowStart(Link(100e6, 0.1, 0.0))
    assert start.admit(0.0, 0.0, FIRST_WINDOW) == 0.0
    assert start.admit(0.001, 0.001, FIRST_WINDOW) == pytest.approx(0.1)
    assert start.admit(0.11, 0.11, FIRST_WINDOW) == pytest.approx(0.11)
    assert start.admit(0.12, 0.12, FIRST_WINDOW) == pytest.approx(0.2)
    assert start.admit(5.0, 5.0, FIRST_WINDOW) == 5.0
    assert start.admit(5.0, 5.0, FIRST_WINDOW) == pytest.approx(5.1)


@pytest.mark.long
def test_the_benchmark_runs_all_arms_and_its_stages_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "20000", "--clients", "2", "--mbit", "100"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    arms = {row["arm"]: row["outcome"] for row in figures["rows"]}
    assert list(arms) == [*(way.name for way in WAYS), "dense bf16", "dense fp32"]
    for outcome in arms.values():
        assert set(outcome["stages"]) == set(STAGES)
        assert sum(outcome["stages"].values()) == pytest.approx(outcome["seconds"])
    assert arms["dense fp32"]["up_bytes"] > 1.9 * arms["dense bf16"]["up_bytes"] > 1.9 * 2 * 20000
