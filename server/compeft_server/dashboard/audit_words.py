"""Entries of the audit log as sentences with names; the entry itself is shown as it was written beside them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compeft_server.ledger.lookups.pages import AuditLine
from compeft_server.reports.formats.html import sentence


@dataclass(frozen=True, slots=True)
class Said:
    """One entry: the sentence, and what was written."""

    line: AuditLine
    sentence: str


Detail = Mapping[str, object]
Sentence = Callable[[str, Callable[[str], str]], str]
"""(subject, text of a field of the detail, empty if absent) -> the sentence."""


def _round(field: Callable[[str], str]) -> str:
    return f"round {field('round')}" + (f" of run {field('run')}" if field("run") else "")


SENTENCES: Mapping[str, Sentence] = {
    "enrol": lambda s, f: f"{s} was enrolled as {f('role')}" + (f" by invitation {f('invitation')}" if f("invitation") else ""),
    "invite": lambda s, f: f"{s} was invited as {f('role')}, invitation {f('invitation')}",
    "revoke": lambda s, f: f"{s} was revoked",
    "renew": lambda s, f: f"{s} renewed its certificate" + (" and changed its key" if f("new_keyid") else ""),
    "refuse to enrol": lambda s, f: f"An attempt to enrol from {s} was refused: {f('reason')}",
    "allow": lambda s, f: f"{f('who')} may {f('may')} {s}",
    "deny": lambda s, f: f"{f('who')} may not {f('may')} {s}",
    "publish": lambda s, f: f"Version {f('version')} of {s} was published",
    "promote": lambda s, f: f"Channel {f('channel')} of {s} was moved to version {f('version')}",
    "retire": lambda s, f: f"{s} was retired" if not f("version") else f"Version {f('version')} of {s} was retired",
    "fetch": lambda s, f: f"{f('keyid')} was given version {f('version')} of {s} ({f('reason')})",
    "unretire": lambda s, f: (
        f"{s} was restored to use" if not f("version") else f"Version {f('version')} of {s} was restored to use"
    ),
    "open round": lambda s, f: sentence(f"{_round(f)} of {s} was opened"),
    "close round": lambda s, f: sentence(f"{_round(f)} of {s} was closed"),
    "accept": lambda s, f: f"An update of {f('keyid')} was accepted for {_round(f)} of {s}",
    "refuse": lambda s, f: f"{f('peer')} was refused{' ' + s if s else ''}: {f('code')}, {f('reason')}",
    "label": lambda s, f: f"{s} was labelled: tenant {f('tenant') or 'none'}, link {f('link') or 'none'}",
    "add kpi": lambda s, f: f"Values of {f('name')} were added to {s}: {f('values')}",
}


def said(line: AuditLine, names: Mapping[str, str]) -> Said:
    """The entry as a sentence; `names` are of keys. An action without a sentence of its own is said by its fields."""
    try:
        parsed = json.loads(line.detail)
    except ValueError:
        parsed = None
    detail: Detail = parsed if isinstance(parsed, dict) else {}

    def field(name: str) -> str:
        value = detail.get(name)
        text = "" if value is None else str(value)
        return names.get(text, f"key {text[:12]}…") if name in ("keyid", "new_keyid") and text else text

    make = SENTENCES.get(line.action)
    return Said(line, _plain(line, field, detail) if make is None else make(line.subject, field))


def _plain(line: AuditLine, field: Callable[[str], str], detail: Detail) -> str:
    fields = ", ".join(f"{name.replace('_', ' ')} {field(name)}" for name in detail)
    return sentence(f"{line.action}: {line.subject}") + (f", {fields}" if fields else "")
