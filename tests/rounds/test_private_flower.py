"""Plan(privacy=...) over Flower: the run is private, and stops by name when its bound is reached."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from compeft_core.errors import InputError
from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto.errors import PrivacySpentError
from compeft_server.cli.report import app
from compeft_server.dashboard.metrics import Registry
from compeft_server.flower.strategy import Plan
from compeft_server.ledger.lookups.privacy_account import read_account
from compeft_server.privacy.accountant import NoisyRelease, epsilon_of
from tests.rounds.conftest import World
from tests.rounds.test_stopping_runs import PLAN, begun, flower_task, head, nothing, run  # noqa: F401  # the fixture is used

TERMS = ClientPrivacy(clip=0.1, noise_multiplier=3.0, delta=1e-5, target_quantile=0.5)


def test_a_run_stops_by_name_when_its_bound_is_reached_and_a_restart_goes_on_with_the_account(world: World) -> None:
    bound = epsilon_of([NoisyRelease(3.0, times=2)], 1e-5)
    plan = replace(PLAN, privacy=replace(TERMS, epsilon=bound), stop_below=None)
    with pytest.raises(PrivacySpentError, match=r"the bound is .*: the run ends here"):
        run(world, nothing, rounds=5, plan=plan)
    assert head(world) == 2
    with pytest.raises(PrivacySpentError, match="the bound is"):
        run(world, nothing, rounds=1, plan=plan, run_id=8)
    account = read_account(world.ledger, "digits")
    assert (account.epsilon, account.rounds_left) == (bound, 0)
    assert [(r.asked, r.answered) for r in account.rounds] == [(2, 2), (2, 2)]


def test_the_report_and_the_metrics_show_the_account(world: World) -> None:
    run(world, nothing, rounds=1, plan=replace(PLAN, privacy=replace(TERMS, epsilon=8.0), stop_below=None))
    spent, data = epsilon_of([NoisyRelease(3.0)], 1e-5), world.folder / "data"
    shown = Registry(data, world.ledger).text().decode()
    assert f'compeft_privacy_epsilon{{expert="digits"}} {spent}' in shown
    assert 'compeft_privacy_rounds_left{expert="digits"}' in shown
    for output_format in ("text", "md", "html"):
        found = CliRunner().invoke(app, ["--data", str(data), "--expert", "digits", "--format", output_format])
        assert f"epsilon {spent:.4g} at delta 1e-05, bound 8" in " ".join(found.output.split()), found.output
    values = json.loads(CliRunner().invoke(app, ["--data", str(data), "--expert", "digits", "--format", "json"]).output)
    assert values["privacy"]["epsilon"] == spent


def test_a_plan_refuses_a_merge_method_without_a_sensitivity() -> None:
    with pytest.raises(InputError, match="no known sensitivity"):
        Plan("digits", merge_method="median", privacy=TERMS)
    Plan("digits", merge_method="median", privacy=replace(TERMS, where="local", target_quantile=None))
