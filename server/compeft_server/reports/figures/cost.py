"""What the bytes of a report cost, by site and by tenant. Each client's bytes cost the tariff of its link, or the price of all others.

The sites add up to the tenants, and both to the whole.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from compeft_server.domain.price import Price
from compeft_server.domain.traffic import Traffic, add
from compeft_server.reports.figures.report import ClientRow, Report

NO_TENANT = "no tenant"


@dataclass(frozen=True, slots=True)
class Cost:
    """Money for the same transfers: as dense float32, as dense bfloat16, and as they went over the wire."""

    dense_fp32: float
    dense_bf16: float
    wire: float


@dataclass(frozen=True, slots=True)
class CostRow:
    """A site, or a tenant with `sites` sites. link, per_gb: of a site; None where the sites of a tenant differ."""

    name: str
    tenant: str
    link: str | None
    per_gb: float | None
    sites: int
    wire_bytes: int
    dense_bf16_bytes: int
    cost: Cost


def cost_by_site(report: Report, price: Price) -> tuple[CostRow, ...]:
    """A row for each client."""
    return tuple(_row(c, price) for c in report.clients)


def cost_by_tenant(sites: Iterable[CostRow]) -> tuple[CostRow, ...]:
    """Rows of the same tenant in one, by name; sites without a label under NO_TENANT."""
    groups: dict[str, list[CostRow]] = {}
    for site in sites:
        groups.setdefault(site.tenant or NO_TENANT, []).append(site)
    return tuple(_together(name, groups[name]) for name in sorted(groups))


def whole_cost(report: Report, price: Price) -> Cost:
    """Of all clients."""
    return _sum(cost_by_site(report, price))


def led_cost(report: Report, price: Price) -> Cost:
    """Of the bytes that led to the stated version, at the mean price of the report's bytes."""
    whole, all_bytes, led = whole_cost(report, price), report.traffic, report.led

    def share(cost: float, size: int, of: int) -> float:
        return cost * size / of if of else 0.0

    return Cost(
        share(whole.dense_fp32, led.dense_fp32_bytes, all_bytes.dense_fp32_bytes),
        share(whole.dense_bf16, led.dense_bf16_bytes, all_bytes.dense_bf16_bytes),
        share(whole.wire, led.wire_bytes, all_bytes.wire_bytes),
    )


def _row(client: ClientRow, price: Price) -> CostRow:
    moved: Traffic = add((client.up, client.down))
    sizes = (moved.dense_fp32_bytes, moved.dense_bf16_bytes, moved.wire_bytes)
    cost = Cost(*(price.of(size, client.link) for size in sizes))
    return CostRow(
        client.name, client.tenant, client.link, price.at(client.link), 1, moved.wire_bytes, moved.dense_bf16_bytes, cost
    )


def _together(name: str, rows: list[CostRow]) -> CostRow:
    links, prices = {r.link for r in rows}, {r.per_gb for r in rows}
    return CostRow(
        name=name,
        tenant=name,
        link=links.pop() if len(links) == 1 else None,
        per_gb=prices.pop() if len(prices) == 1 else None,
        sites=len(rows),
        wire_bytes=sum(r.wire_bytes for r in rows),
        dense_bf16_bytes=sum(r.dense_bf16_bytes for r in rows),
        cost=_sum(rows),
    )


def _sum(rows: Iterable[CostRow]) -> Cost:
    costs = [row.cost for row in rows]
    return Cost(*(math.fsum(getattr(c, name) for c in costs) for name in ("dense_fp32", "dense_bf16", "wire")))
