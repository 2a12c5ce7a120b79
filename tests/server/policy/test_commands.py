"""The operator's commands: policy, channels, retiring, and the card of an expert. On the data of a running aggregator."""

import json

import pytest

from compeft_client.cli.main import run
from tests.server.policy.conftest import EXPERT, World, grow


class Shell:
    """Runs `compeft` on the world's data."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world, self._capsys, self._data = world, capsys, str(world.folder / "data")

    def __call__(self, *words: str, code: int = 0) -> str:
        self._capsys.readouterr()
        assert run([*words, "--data", self._data]) == code
        captured = self._capsys.readouterr()
        return captured.err if code else captured.out

    def json(self, *words: str) -> list[dict[str, object]]:
        """What it prints for programs."""
        printed = json.loads(self(*words, "--format", "json"))
        return printed if isinstance(printed, list) else [printed]


@pytest.fixture
def compeft(world: World, capsys: pytest.CaptureFixture[str]) -> Shell:
    world.enrol("shop-7")
    return Shell(world, capsys)


def test_a_rule_is_said_listed_explained_and_cleared(compeft: Shell) -> None:
    limits = ["--from-version", "2", "--until", "2027-01-31T12:00Z", "--channel", "stable"]
    (said,) = compeft.json("policy", "allow", EXPERT, "shop-7", "--fetch", *limits)
    assert (said["until"], said["channel"], said["from_version"]) == ("2027-01-31T12:00:00Z", "stable", 2)
    assert said in compeft.json("policy", "list", EXPERT)
    publish, fetch = compeft.json("policy", "explain", EXPERT, "shop-7")
    assert (publish["allowed"], fetch["allowed"]) == (True, False)
    assert "allow * role:edge publish" in str(publish["reason"])
    assert fetch["rule"] == said
    compeft("policy", "clear", EXPERT, "shop-7")
    assert "shop-7 may fetch sentiment version 0: rule" in compeft("policy", "explain", EXPERT, "shop-7")
    assert said not in compeft.json("policy", "list", EXPERT)
    assert said in compeft.json("policy", "list", EXPERT, "--all")


def test_denying_denies_both_and_a_role_is_explained_too(compeft: Shell) -> None:
    assert len(compeft.json("policy", "deny", "*", "role:reader")) == 2
    answers = compeft.json("policy", "explain", EXPERT, "role:reader")
    assert [answer["allowed"] for answer in answers] == [False, False]


def test_a_rule_for_an_expert_that_is_yet_to_come_waits_for_it(
    compeft: Shell, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    assert run(["policy", "allow", "later", "role:edge", "--fetch", "--data", str(world.folder / "data")]) == 0
    assert "waits for it" in capsys.readouterr().err


def test_a_revoked_member_may_nothing_whatever_the_rules_say(compeft: Shell) -> None:
    compeft("clients", "revoke", "shop-7")
    assert compeft("policy", "explain", EXPERT, "shop-7").count("may not") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["allow", EXPERT, "nobody", "--fetch"], "no enrolled or invited member is named 'nobody'"),
        (["allow", EXPERT, "role:king", "--fetch"], "role 'king', expected one of edge"),
        (["allow", EXPERT, "shop-7"], "expected --publish, --fetch, or both"),
        (["allow", EXPERT, "shop-7", "--fetch", "--until", "tomorrow"], "write it like 2027-01-31T12:00Z"),
        (["allow", EXPERT, "shop-7", "--fetch", "--until", "2001-01-01"], "until 2001-01-01T00:00:00Z, it is "),
        (["allow", EXPERT, "shop-7", "--publish", "--channel", "stable"], "a channel bounds what may be fetched"),
        (["allow", EXPERT, "shop-7", "--fetch", "--from-version", "-1"], "the first is 0"),
        (["explain", EXPERT, "nobody"], "no enrolled member is named 'nobody'"),
        (["explain", EXPERT, "role:king"], "role 'king', expected one of edge"),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_says_why(compeft: Shell, words: list[str], message: str) -> None:
    error = compeft("policy", *words, code=3)
    assert message in error
    assert error.count("\n") == 1


def test_enrolling_with_an_expert_grants_what_the_role_needs(compeft: Shell) -> None:
    assert run(["keys", "new", str(compeft.world.folder / "new.key")]) == 0
    said = compeft("clients", "add", "new", str(compeft.world.folder / "new.pub"), "--role", "reader", "--expert", EXPERT)
    assert "new may fetch sentiment" in said
    publish, fetch = compeft.json("policy", "explain", EXPERT, "new")
    assert (publish["allowed"], fetch["allowed"]) == (False, True)


def test_inviting_with_an_expert_grants_before_the_member_comes(compeft: Shell) -> None:
    compeft("clients", "invite", "soon", "--expert", EXPERT)
    rules = compeft.json("policy", "list", EXPERT)
    assert [rule["action"] for rule in rules if rule["who"] == "soon"] == ["fetch", "publish"]


def test_a_bad_name_enrols_nobody(compeft: Shell) -> None:
    assert run(["keys", "new", str(compeft.world.folder / "new.key")]) == 0
    public = str(compeft.world.folder / "new.pub")
    assert "invalid member name 'role:edge'" in compeft("clients", "add", "role:edge", public, code=3)
    assert "invalid expert name 'a b'" in compeft("clients", "add", "new", public, "--expert", "a b", code=3)
    assert {m.name for m in compeft.world.ledger.members()} == {"conductor", "shop-7"}


def test_the_card_of_an_expert_has_base_model_layout_versions_channels_policy_and_contributors(compeft: Shell) -> None:
    grow(compeft.world, 2)
    compeft("experts", "promote", EXPERT, "1")
    compeft("experts", "retire", EXPERT, "--version", "0")
    (card,) = compeft.json("experts", "show", EXPERT)
    assert (card["owner"], card["retired"], card["contributors"]) == ("conductor", False, {"grower": 2})
    assert card["channels"] == {"stable": 1, "canary": 2}
    assert card["base_model"] == {"id": "", "revision": "", "weights_digest": "01" * 32}
    versions = card["versions"]
    assert isinstance(versions, list)
    assert [(v["version"], v["retired"]) for v in versions] == [(0, True), (1, False), (2, False)]
    assert card["payload_bytes"] == sum(v["payload_bytes"] for v in versions) > 0
    text = compeft("experts", "show", EXPERT)
    for words in (
        "owner         conductor",
        "stable version 1, canary version 2",
        "grower (2 updates)",
        "allow * role:edge fetch",
    ):
        assert words in text
    assert text.splitlines()[-2].endswith("stable")


def test_a_retired_expert_is_marked_in_the_list_until_it_comes_back(compeft: Shell) -> None:
    compeft("experts", "retire", EXPERT)
    assert "retired" in compeft("experts", "list")
    assert compeft.json("experts", "list")[0]["retired"] is True
    assert compeft("experts", "retire", EXPERT, "--undo") == "sentiment is no longer retired\n"
    assert "retired" not in compeft("experts", "list")


def test_what_does_not_exist_is_refused_with_what_does(compeft: Shell) -> None:
    assert "there are: sentiment" in compeft("experts", "retire", "nothing", code=7)
    assert "versions 0 to 0, not 5" in compeft("experts", "retire", EXPERT, "--version", "5", code=7)
    assert "there are: sentiment" in compeft("experts", "show", "nothing", code=7)
    assert "versions 0 to 0, not 5" in compeft("policy", "explain", EXPERT, "shop-7", "--version", "5", code=7)
