"""Tables that become cards on a narrow screen: each cell carries the name of its column, which the style sheet shows beside the value.

A filter for templates, so that a table is written once: `{% filter labelled %}<table>...</table>{% endfilter %}`.
"""

import re

from markupsafe import Markup

_HEAD = re.compile(r"<thead>(.*?)</thead>", re.DOTALL)
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_COLUMN = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.DOTALL)
_SPAN = re.compile(r'colspan="(\d+)"')
_TAG = re.compile(r"<[^>]*>")
_CELL = re.compile(r"<(t[hd])\b")
_BODY = re.compile(r"<tbody>.*?</tbody>", re.DOTALL)


def labelled(html: Markup) -> Markup:
    """The table with `data-label` on every cell of its body: the column's heading, after that of its group if it has one.

    The values are escaped already; a cell must not contain a table.
    """
    head = _HEAD.search(html)
    if head is None:
        return html
    rows = [_headings(row) for row in _ROW.findall(head.group(1))]
    groups = rows[0] if len(rows) > 1 else [""] * len(rows[-1])
    labels = [f"{group} {name}".strip() for group, name in zip(groups, rows[-1], strict=True)]
    return Markup(_BODY.sub(lambda body: _ROW.sub(lambda row: _label(row.group(), labels), body.group()), str(html)))  # noqa: S704


def _headings(row: str) -> list[str]:
    """The words of one row of the head, one a column."""
    found: list[str] = []
    for _, attributes, inner in _COLUMN.findall(row):
        span = _SPAN.search(attributes)
        found += [" ".join(_TAG.sub("", inner).split())] * (int(span.group(1)) if span else 1)
    return found


def _label(row: str, labels: list[str]) -> str:
    names = iter(labels)
    return _CELL.sub(lambda cell: f'<{cell.group(1)} data-label="{next(names, "")}"', row)
