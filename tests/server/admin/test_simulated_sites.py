"""Site folders of simulated clients: enrolled, private, kept when more are asked for, and good for both sides."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compeft_client.identity.edge_config import edge_of
from compeft_core.errors import InputError
from compeft_proto.site_layout import SIMULATED_CONDUCTOR, simulated
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.cli.clients import app
from compeft_server.data_directory import open_ledger
from compeft_server.flower.conductor import conductor_config
from compeft_server.identity.aggregator_keys import own_key

ADDRESS = "127.0.0.1:9443"


def test_every_simulated_client_is_an_edge_with_a_key_of_its_own_and_one_conductor_opens_rounds(tmp_path: Path) -> None:
    data, sites = tmp_path / "data", tmp_path / "sites"
    assert make_sites(data, sites, 2, ADDRESS, ["digits"]) == [SIMULATED_CONDUCTOR, "simulated-0", "simulated-1"]
    members = {m.public.keyid: (m.name, m.role) for m in open_ledger(data).members()}
    for number in range(2):
        edge = edge_of({"site": sites / simulated(number)})
        assert members[edge.key.keyid] == (simulated(number), "edge")
        assert (edge.address, edge.aggregator) == (ADDRESS, own_key(data).public)
    station = conductor_config({"site": sites / SIMULATED_CONDUCTOR})
    assert members[station.key.keyid] == (SIMULATED_CONDUCTOR, "conductor")
    assert {(sites / name).stat().st_mode & 0o777 for name, _ in members.values()} == {0o700}


def test_more_clients_may_be_added_and_those_there_keep_their_keys(tmp_path: Path) -> None:
    data, sites = tmp_path / "data", tmp_path / "sites"
    make_sites(data, sites, 1, ADDRESS, ["digits"])
    before = edge_of({"site": sites / simulated(0)}).key.keyid
    make_sites(data, sites, 3, ADDRESS, ["digits"])
    assert edge_of({"site": sites / simulated(0)}).key.keyid == before
    assert len(open_ledger(data).members()) == 4


def test_what_an_interrupted_attempt_left_is_finished(tmp_path: Path) -> None:
    data, sites = tmp_path / "data", tmp_path / "sites"
    make_sites(data, sites, 1, ADDRESS, ["digits"])
    (sites / simulated(0) / "site.json").unlink()
    make_sites(data, sites, 1, ADDRESS, ["digits"])
    assert edge_of({"site": sites / simulated(0)}).address == ADDRESS


def test_simulated_clients_of_another_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"agg\.example:9443 is not on this machine"):
        make_sites(tmp_path / "data", tmp_path / "sites", 1, "agg.example:9443", [])


def test_the_command_makes_them_and_says_where(tmp_path: Path) -> None:
    arguments = [
        "clients",
        "simulate",
        str(tmp_path / "sites"),
        "--clients",
        "2",
        "--expert",
        "digits",
        "--data",
        str(tmp_path / "data"),
    ]
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert json.loads(done.stdout) == {
        "sites": str(tmp_path / "sites"),
        "members": [SIMULATED_CONDUCTOR, "simulated-0", "simulated-1"],
    }
    assert "2 simulated clients and a conductor of 127.0.0.1:9443" in CliRunner().invoke(app, arguments).stdout
