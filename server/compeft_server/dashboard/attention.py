"""What an operator has to look at now, in words with a link: late rounds, refusals, low quality, members behind, certificates that end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from compeft_server.dashboard.figures import DAY_MS, Card
from compeft_server.domain.records import Enrolled
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.behind import Behind, MemberVersion
from compeft_server.reports.formats.text import human_metric, printable

MAX_SHOWN = 8
"""Alerts that the overview lists; it says how many more there are."""
BEHIND_VERSIONS = 3
"""A member is behind if it lacks this many versions or more: one or two are missing while a round is under way."""
CERTIFICATE_DAYS, EXPERT_DAYS = 14, 30
LEAST_SWITCHES = 20
"""Switches from which on a pool's share of hits says something."""
ALARMING_CODES = ("bad_signature", "unknown_key", "replay", "not_finite")
"""Codes of refusals that an honest client does not earn."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to look at, and the page that shows it."""

    words: str
    href: str


def alerts(ledger: Ledger, cards: Sequence[Card], now_ms: int) -> list[Alert]:
    """Everything that is to be looked at, the most urgent first."""
    behind = Behind(ledger)
    found: list[Alert] = []
    for late in behind.late_rounds(now_ms):
        address = urlencode({"expert": late.expert, "run": late.run, "number": late.round})
        found.append(Alert(f"Round {late.round} of {printable(late.expert)} is open past its deadline", f"/round?{address}"))
    for code, number in sorted(behind.refused_since(now_ms - DAY_MS).items()):
        if code in ALARMING_CODES:
            found.append(Alert(f"{number:,} refused as {code} in the last 24 hours", f"/refused?code={code}"))
    found += _of_quality(cards)
    found += of_members(behind.delivered())
    found += _of_pools(ledger, behind)
    found += _of_certificates(ledger.membership.enrolled(), now_ms)
    found += _of_age(cards, now_ms)
    return found


def of_members(delivered: Iterable[MemberVersion]) -> list[Alert]:
    """Members that lack BEHIND_VERSIONS versions or more, those that lack most first."""
    late = sorted((d for d in delivered if d.missing >= BEHIND_VERSIONS), key=lambda d: -d.missing)
    return [
        Alert(
            f"{printable(d.name)} has version {d.version} of {printable(d.expert)}: {d.missing} behind",
            f"/client?keyid={d.keyid}",
        )
        for d in late
    ]


def _of_pools(ledger: Ledger, behind: Behind) -> list[Alert]:
    """Pools that have older versions of packages in memory, and pools whose experts do not fit: each other switch reads a file."""
    pools, names = ledger.pools.newest(), {m.public.keyid: m.name for m in ledger.members()}
    known = behind.packages({e.sha256 for use in pools for e in use.experts})
    found = []
    for use in pools:
        name, href = printable(names.get(use.keyid, use.keyid[:12])), f"/client?keyid={use.keyid}"
        old = [known[e.sha256] for e in use.experts if e.sha256 in known and known[e.sha256][1] < known[e.sha256][2]]
        for expert, version, head in old[:MAX_SHOWN]:
            found.append(Alert(f"The pool of {name} serves version {version} of {printable(expert)}; {head} is the newest", href))
        if use.misses > use.hits and use.switches >= LEAST_SWITCHES and use.resident < use.known:
            words = f"The pool of {name} reads a file at {use.misses:,} of {use.misses + use.hits:,} switches"
            found.append(Alert(f"{words}: {use.resident:,} of {use.known:,} experts fit in its memory", href))
    return found


def _of_quality(cards: Sequence[Card]) -> list[Alert]:
    found = []
    for card in cards:
        standing = card.standing
        if standing is None or standing.base is None or standing.synced is None or standing.synced.version == 0:
            continue
        base, now = standing.base.score.mean, standing.synced.score.mean
        if now < base:
            values = f"{human_metric(standing.metric, now)} against {human_metric(standing.metric, base)}"
            what = f"{printable(card.expert.name)} version {standing.synced.version}"
            words = f"{what} has a lower {printable(standing.metric)} than base only: {values}"
            found.append(Alert(words, f"/expert?{urlencode({'name': card.expert.name})}"))
    return found


def _of_certificates(enrolled: Iterable[Enrolled], now_ms: int) -> list[Alert]:
    found = []
    for e in enrolled:
        end = e.certificate_expires_at_ms
        if end is None or e.revoked_at_ms is not None or e.replaced_by or end > now_ms + CERTIFICATE_DAYS * DAY_MS:
            continue
        days = (end - now_ms) // DAY_MS
        words = "has expired" if end < now_ms else f"ends in {days} day{'' if days == 1 else 's'}"
        found.append(Alert(f"The certificate of {printable(e.name)} {words}", f"/client?keyid={e.keyid}"))
    return found


def _of_age(cards: Sequence[Card], now_ms: int) -> list[Alert]:
    old = [(card, (now_ms - card.expert.newest_at_ms) // DAY_MS) for card in cards]
    return [
        Alert(
            f"{printable(card.expert.name)} has had no new version for {days} days",
            f"/expert?{urlencode({'name': card.expert.name})}",
        )
        for card, days in old
        if days >= EXPERT_DAYS
    ]
