"""The pages for whoever operates: members, refusals, the audit log. Each reads what it shows and renders its template."""

from fastapi import Request
from fastapi.responses import Response

from compeft_proto.errors import UnknownExpertError
from compeft_server.dashboard.audit_words import said
from compeft_server.dashboard.site import Renderer
from compeft_server.ledger.lookups.behind import Behind, MemberVersion
from compeft_server.ledger.lookups.pages import PAGE
from compeft_server.ledger.lookups.search import MOST, LedgerSearch
from compeft_server.reports.figures.gpu_use import measured_pools
from compeft_server.reports.formats import text


class OperatorPages(Renderer):
    """Every method is one page."""

    def clients(self, request: Request, name: str, page: int) -> Response:
        """Everybody enrolled whose name has these letters, 50 a page; those that lack versions say so."""
        found = [c for c in self.summaries.clients() if name.lower() in c.name.lower()]
        shown = found[(page - 1) * PAGE : page * PAGE]
        scores: dict[str, list[tuple[str, str, int, float]]] = {}
        for (keyid, expert, metric), (version, value) in self.summaries.client_scores().items():
            scores.setdefault(keyid, []).append((expert, metric, version, value))
        missing: dict[str, list[MemberVersion]] = {}
        for one in Behind(self._site.ledger).delivered([c.keyid for c in shown]):
            missing.setdefault(one.keyid, []).append(one)
        return self.render(
            request, "clients", rows=shown, total=len(found), page=page, chosen=name, scores=scores, delivered=missing
        )

    def search(self, request: Request, words: str) -> Response:
        """Experts, members, rounds and versions with these words."""
        return self.render(request, "search", words=words, hits=LedgerSearch(self._site.ledger).find(words), most=MOST)

    def client(self, request: Request, keyid: str) -> Response:
        """One key of a member: when it was seen last, where it is behind, its rate, its certificate."""
        found = next((c for c in self.summaries.clients() if c.keyid == keyid), None)
        if found is None:
            raise UnknownExpertError(f"no member has the key {keyid[:40]!a}: choose one of the page Clients")
        heads = {e.name: e.head for e in self.summaries.experts()}
        scores = {e: (m, v, value) for (key, e, m), (v, value) in self.summaries.client_scores().items() if key == keyid}
        return self.render(
            request,
            "client",
            client=found,
            enrolled=next(e for e in self._site.ledger.membership.enrolled() if e.keyid == keyid),
            pools=measured_pools((p for p in self._site.ledger.pools.newest() if p.keyid == keyid), {keyid: found.name}),
            pool_columns=text.POOL_COLUMNS,
            pool_cells=text.pool_cells,
            moved=self.summaries.moved_by_member(keyid),
            delivered=self.summaries.newest_delivered(keyid),
            heads=heads,
            scores=scores,
        )

    def refused(self, request: Request, expert: str, code: str, page: int) -> Response:
        """What was turned away, and why."""
        rows, total = self._listings.refusals(expert, code, page)
        codes, experts = self.summaries.refused_by_code(), self._site.ledger.experts()
        chosen = {"expert": expert, "code": code}
        return self.render(request, "refused", rows=rows, total=total, page=page, codes=codes, experts=experts, chosen=chosen)

    def audit(self, request: Request, action: str, subject: str, page: int) -> Response:
        """Every decision."""
        lines, total = self._listings.audit(action, subject, page)
        names = self._names()
        rows = [said(line, names) for line in lines]
        chosen, actions = {"action": action, "subject": subject}, self.summaries.actions()
        return self.render(request, "audit", rows=rows, total=total, page=page, actions=actions, chosen=chosen)
