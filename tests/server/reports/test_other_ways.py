"""What other ways would have moved: computed from counted parameters, the same in every format."""

import json
from pathlib import Path

import numpy as np
import pytest

from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.extras import Extras
from compeft_server.reports.figures.other_ways import OTHER_WAYS, other_costs, stc_bits
from compeft_server.reports.formats.html import to_html
from compeft_server.reports.formats.json_format import to_json
from compeft_server.reports.formats.markdown import to_markdown
from compeft_server.reports.formats.text import human_bytes
from tests.server.dashboard.ledgers import LAYOUT, Story, tell


def test_bits_a_parameter_follow_each_ways_rule() -> None:
    bits = {way.name: way.bits for way in OTHER_WAYS}
    assert bits["nf4"] == 4.5
    assert bits["8-bit, blockwise"] == pytest.approx(8.0078125)
    assert bits["SparseLoCo"] == pytest.approx(0.21875)
    assert 32 / bits["SparseLoCo"] == pytest.approx(146.3, abs=0.1)
    assert bits["STC"] == pytest.approx(0.0278, abs=1e-4)
    assert stc_bits(0.01) == pytest.approx(0.01 * (8.108 + 1), rel=1e-3)


def test_every_format_has_the_same_bytes_for_every_way(tmp_path: Path) -> None:
    ledger = tell(tmp_path, Story(rounds=3, clients=2))
    report = read_report(ledger, "sentiment")
    costs = other_costs(report)
    moved = 2 * (4 + 3) * LAYOUT.size
    assert [c.payload_bytes for c in costs[:3]] == [4 * moved, 4 * moved, 2 * moved]
    assert costs[0].payload_bytes == report.led.dense_fp32_bytes
    assert [w["payload_bytes"] for w in json.loads(json.dumps(to_json(report)))["other_ways"]] == [c.payload_bytes for c in costs]
    page, words = to_html(report, Extras()), to_markdown(report)
    for cost in costs:
        assert f'<td data-label="bytes">{human_bytes(cost.payload_bytes)}</td>' in page
        assert f"| {cost.way.name} | {human_bytes(cost.payload_bytes)} |" in words
    share = 4 * moved / (200_000 * 2**20)
    assert to_json(report)["flowertune_budget"] == {
        "share_by_its_tracker": share,
        "share_by_payload": report.led.payload_bytes / (200_000 * 2**20),
    }
    percent = np.format_float_positional(100 * share, precision=2, fractional=False, trim="-")
    told = f"Of FlowerTune's budget of 200,000 MB a run: {percent} % by its tracker's counting"
    assert told in words
    assert told.replace("'", "&#39;") in page
    assert "Computed, not measured" in page
    assert "Computed, not measured" in words
    ledger.close()


def test_no_way_is_computed_where_no_saving_is_stated(tmp_path: Path) -> None:
    ledger = tell(tmp_path, Story(rounds=3, clients=2, measured=False))
    report = read_report(ledger, "sentiment")
    assert other_costs(report) == ()
    assert "What other ways" not in to_html(report) + to_markdown(report)
    ledger.close()
