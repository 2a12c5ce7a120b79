"""Money by site and by tenant, at the price or a link's tariff: the parts add up to the whole, on every face."""

import json
from pathlib import Path

import pytest

from compeft_client.cli.main import run
from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_server.data_directory import open_ledger
from compeft_server.domain.price import Label, price_of, tariffs_of
from compeft_server.ledger.audit import check
from compeft_server.reports.formats.text import human_cost, human_money
from tests.server.dashboard.ledgers import Story, tell

MONEY = ["--price-per-gb", "80", "--tariff", "satellite=2500"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four sites: two of bank-a, of which one is on a satellite link, one of bank-b, one without a label."""
    tell(tmp_path / "data", Story(rounds=3, now_ms=now_ms())).close()
    for name, options in {
        "edge-0": ["--tenant", "bank-a", "--link", "satellite"],
        "edge-1": ["--tenant", "bank-a"],
        "edge-2": ["--tenant", "bank-b"],
    }.items():
        assert run(["clients", "label", name, "--data", str(tmp_path / "data"), *options]) == 0
    return tmp_path / "data"


def report(data: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert run(["report", "--data", str(data), *options]) == 0
    return capsys.readouterr().out


def test_sites_add_up_to_tenants_and_both_to_the_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(report(data, capsys, *MONEY, "--format", "json"))
    cost = values["cost"]
    for kind in ("dense_fp32", "dense_bf16", "wire"):
        assert sum(s[kind] for s in cost["by_site"]) == pytest.approx(cost[kind])
        assert sum(t[kind] for t in cost["by_tenant"]) == pytest.approx(cost[kind])
        assert cost["per_1000_rounds"][kind] == pytest.approx(1000 * cost[kind] / 3)
    assert sum(s["wire_bytes"] for s in cost["by_site"]) == values["wire_bytes"]
    assert [(t["name"], t["sites"], t["per_gb"]) for t in cost["by_tenant"]] == [
        ("bank-a", 2, None),
        ("bank-b", 1, 80.0),
        ("no tenant", 1, 80.0),
    ]
    satellite, plain = cost["by_site"][0], cost["by_site"][1]
    assert satellite["wire"] == pytest.approx(satellite["wire_bytes"] / 1e9 * 2500)
    assert plain["wire"] == pytest.approx(plain["wire_bytes"] / 1e9 * 80)
    assert cost["tariffs"] == {"satellite": 2500.0}


def test_every_face_has_the_cost_of_each_tenant_and_site(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(report(data, capsys, *MONEY, "--format", "json"))
    pages = {kind: report(data, capsys, *MONEY, "--format", kind) for kind in ("html", "md", "text")}
    rows = {"all clients": values["cost"]["wire"]} | {f"tenant {t['name']}": t["wire"] for t in values["cost"]["by_tenant"]}
    for name, wire in (rows | {s["name"]: s["wire"] for s in values["cost"]["by_site"]}).items():
        shown = human_cost(wire, values["rounds"], "EUR")
        assert all(shown in page for page in pages.values()), (name, shown)
        assert all(name in page for kind, page in pages.items() if (kind, name) != ("text", "all clients"))
    assert "edge-0, satellite" in pages["html"]


def test_a_price_without_tariffs_is_that_of_all_bytes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(report(data, capsys, "--price-per-gb", "80", "--format", "json"))
    assert values["cost"]["wire"] == pytest.approx(values["wire_bytes"] / 1e9 * 80)


def test_small_sums_are_stated_for_a_thousand_rounds() -> None:
    assert human_cost(0.000236, 4, "EUR") == "0.0590 EUR per 1,000 rounds"
    assert human_cost(0.5, 4, "EUR") == human_money(0.5, "EUR") == "0.500 EUR"
    assert human_cost(0.0, 4, "EUR") == "0.00 EUR"
    assert human_cost(0.000236, 0, "EUR") == "0.000236 EUR"


def test_a_label_stays_with_the_name_and_is_audited(data: Path) -> None:
    ledger = open_ledger(data)
    assert ledger.labels.all()["edge-0"] == Label("bank-a", "satellite")
    ledger.labels.put("edge-0", Label("bank-c"), 5)
    assert ledger.labels.all()["edge-0"] == Label("bank-c", "")
    check(ledger.audit_entries())
    ledger.close()


@pytest.mark.parametrize("options", [["--tenant", "x" * 65], ["--link", "a\x07b"]])
def test_a_label_that_cannot_be_kept_is_refused(data: Path, options: list[str]) -> None:
    assert run(["clients", "label", "edge-0", "--data", str(data), *options]) == 3
    assert run(["clients", "label", "nobody", "--data", str(data), "--tenant", "x"]) == 3


@pytest.mark.parametrize("option", ["satellite", "=3", "satellite=", "satellite=x", "satellite=-1", "satellite=inf"])
def test_a_tariff_that_is_no_price_is_refused(option: str) -> None:
    with pytest.raises(InputError, match="expected LINK=PRICE"):
        tariffs_of([option])
    with pytest.raises(InputError, match="expected both"):
        price_of(None, "EUR", (("satellite", 1.0),))
