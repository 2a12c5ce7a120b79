"""Step 6, may they: a question about a member and an expert, put to the policy with what the ledger knows. A denial is an error.

Whoever moves bytes of an expert asks here first. Denials are recorded by whoever answers the call, as every refusal is.
"""

from collections.abc import Callable

from compeft_proto.errors import UnknownExpertError
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.domain.admission import admitted
from compeft_server.domain.channels import channels_through
from compeft_server.domain.policy import Action, Decision, Question, decide, retired
from compeft_server.domain.records import Expert, Member
from compeft_server.ledger.ledger import Ledger

MOST_NAMED = 20
"""Experts looked at for an error that names what exists."""


class Access:
    """The policy of one aggregator's experts. `now_ms` is its clock."""

    def __init__(self, ledger: Ledger, log: ExpertLog, now_ms: Callable[[], int]) -> None:
        self._ledger, self._log, self._now_ms = ledger, log, now_ms
        self._owners: dict[str, str] = {}

    def expert(self, member: Member, name: str, *, carried: bool) -> Expert:
        """The expert of this name. Errors: UnknownExpertError, which names those that the member may fetch, unless others carry it."""
        found = self._ledger.expert(name)
        if found is None and carried:
            raise UnknownExpertError(f"no expert {name[:40]!a} here")
        if found is None:
            raise UnknownExpertError(f"no expert {name[:40]!a} here; yours are: {', '.join(self._fetchable(member)) or 'none'}")
        return found

    def decide(self, name: str, role: str, expert: str, action: Action, version: int) -> Decision:
        """May this member, or anybody of the role where `name` is empty, do this with a version of an expert, which may not exist yet?"""
        word = self._ledger.terms.word(expert)
        question = Question(
            expert=expert,
            name=name,
            role=role,
            action=action,
            version=version,
            channels=channels_through(version, word.moves),
            owns=bool(name) and self.owner(expert) == name,
            retired=not retired(word.retirements).isdisjoint((None, version)),
            now_ms=self._now_ms(),
        )
        return decide(question, word.rules)

    def require(self, member: Member, expert: str, action: Action, version: int) -> Decision:
        """The decision, if the member may. Errors: ForbiddenError with the reason and the way out."""
        return admitted(self.decide(member.name, member.role, expert, action, version), member, expert, action)

    def require_name(self, member: Member, expert: str) -> Decision:
        """A conductor may publish an expert under a free name, which it then owns, unless a rule that names it denies that; anybody
        else needs a grant for that name. Errors: ForbiddenError.
        """
        conducts = member.role == "conductor"
        question = Question(expert, member.name, member.role, "publish", 0, frozenset(), conducts, False, self._now_ms())
        return admitted(decide(question, self._ledger.terms.rules(expert)), member, expert, "publish")

    def _fetchable(self, member: Member) -> list[str]:
        """The experts whose newest version a member may fetch; the first of the first MOST_NAMED."""
        names = self._ledger.experts()[:MOST_NAMED]
        return [n for n in names if self.decide(member.name, member.role, n, "fetch", self._ledger.head(n)).allowed]

    def owner(self, expert: str) -> str:
        """The name of the member that published an expert; empty if no such expert or member exists."""
        if self._log.find(expert) is None:
            return ""
        if expert not in self._owners and (found := self._ledger.member(self._log.publisher(expert))) is not None:
            self._owners[expert] = found.name
        return self._owners.get(expert, "")
