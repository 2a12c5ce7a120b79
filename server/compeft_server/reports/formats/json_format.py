"""The report and the dense arm as JSON: stable keys, whole bytes, seconds, savings as dense / wire. Reads and writes text only."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields

from compeft_core.errors import FormatError
from compeft_server.domain.price import Energy, Price
from compeft_server.domain.traffic import Traffic
from compeft_server.privacy.words import account_json
from compeft_server.reports.figures.cost import CostRow, cost_by_site, cost_by_tenant, whole_cost
from compeft_server.reports.figures.extras import Extras
from compeft_server.reports.figures.gpu_use import MeasuredPool
from compeft_server.reports.figures.other_ways import budget_shares, other_costs
from compeft_server.reports.figures.report import ClientRow, DenseArm, Report, VersionRow, link_times, measured_rate, row_savings


def dense_to_json(dense: DenseArm) -> str:
    """Text that `dense_from_json` reads."""
    return json.dumps({field.name: getattr(dense, field.name) for field in fields(DenseArm)}, indent=2, allow_nan=False)


def dense_from_json(text: str) -> DenseArm:
    """The dense arm in this text. Errors: FormatError that names the field."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the dense run's file is not JSON: {error}") from error
    names = {field.name for field in fields(DenseArm)}
    if not isinstance(values, dict) or not names - {"base"} <= set(values) <= names:
        raise FormatError(f"the dense run's file must be an object with {', '.join(sorted(names))}")
    for name, valid in _DENSE_FIELDS.items():
        if name in values and not valid(values[name]):
            raise FormatError(f"field {name} of the dense run's file is {str(values[name])[:40]!a}")
    return DenseArm(**{**values, "metrics": tuple(values["metrics"])})


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_DENSE_FIELDS: dict[str, Callable[[object], bool]] = {
    "metric": lambda v: isinstance(v, str) and bool(v),
    "metrics": lambda v: isinstance(v, list) and bool(v) and all(m is None or _number(m) for m in v),
    "clients": _count,
    "dense_fp32_bytes": _count,
    "wire_bytes": _count,
    "seconds": lambda v: _number(v) and float(str(v)) >= 0,
    "counted": lambda v: isinstance(v, str),
    "base": lambda v: v is None or _number(v),
}


def to_json(report: Report, extras: Extras = Extras()) -> dict[str, object]:  # noqa: B008  # frozen
    """Values for `json.dumps`; the keys are stable. Bytes are whole numbers, times seconds, savings dense / wire."""
    final = report.final.score if report.final else None
    return {
        "expert": report.expert,
        "parameters": report.parameters,
        "metric": report.metric,
        f"base_{report.metric}": report.base.mean if report.base else None,
        f"final_{report.metric}": final.mean if final else None,
        f"uncompressed_{report.metric}": report.uncompressed.mean if report.uncompressed else None,
        "uncompressed_is": None if report.uncompressed is None else "own updates" if report.uncompressed.own else "dense peer",
        "final_version": report.final.version if report.final else None,
        "rounds": report.rounds,
        "clients": len(report.clients),
        "refused": len(report.refusals),
        "seconds": report.seconds,
        **_traffic_json(report.traffic),
        "up": _traffic_json(report.up),
        "down": _traffic_json(report.down),
        "operator_wire_bytes": report.operator_wire_bytes,
        "final_reported_by": final.reporter or None if final else None,
        "savings_fp32": report.savings_fp32,
        "savings_bf16": report.savings_bf16,
        "savings_of": _stated_json(report),
        "savings_measured": report.savings_measured,
        "no_savings_because": report.silence or None,
        "retained_gain": report.retained_gain,
        "measured_bits_per_second": measured_rate(report),
        "link_seconds": [
            {"link": t.link.name, "dense_fp32": t.dense_fp32, "dense_bf16": t.dense_bf16, "wire": t.wire}
            for t in link_times(report)
        ],
        "versions": [_version_json(report, row) for row in report.versions],
        "per_client": [_client_json(report, row) for row in report.clients],
        "refusals": [{"at_ms": r.at_ms, "peer": r.peer, "code": r.code, "reason": r.reason} for r in report.refusals],
        "dense": _dense_json(report) if report.dense else None,
        "since_ms": report.since_ms,
        f"deviation_{report.metric}": report.deviation,
        "runs": [{"run": r.run, "version": r.version, report.metric: r.score.mean} for r in report.runs],
        "cost": _cost_json(report, extras.price) if extras.price else None,
        "energy": _energy_json(report, extras.energy) if extras.energy else None,
        "kpis": [{**asdict(s.kpi), "values": [{"at_ms": v.at_ms, "value": v.value} for v in s.values]} for s in report.kpis],
        "other_ways": [
            {"name": c.way.name, "payload_bytes": c.payload_bytes, "bits_per_parameter": c.way.bits, "how": c.way.how}
            for c in other_costs(report)
        ],
        "flowertune_budget": None
        if report.silence
        else dict(zip(("share_by_its_tracker", "share_by_payload"), budget_shares(report), strict=True)),
        "densities": [{**asdict(row), "used": row.used or None} for row in extras.densities],
        "pool": asdict(extras.pool) if extras.pool else None,
        "pools": [_pool_json(pool) for pool in report.pools],
        "privacy": account_json(extras.privacy) if extras.privacy else None,
        "training": asdict(report.training) if report.training else None,
    }


def _pool_json(pool: MeasuredPool) -> dict[str, object]:
    use = {name: value for name, value in asdict(pool.use).items() if name != "experts"}
    beside = {"hit_share": pool.use.hit_share, "mean_switch_seconds": pool.use.switch_s}
    return {"member": pool.member, **use, **beside, "experts": [asdict(e) for e in pool.use.experts]}


def _energy_json(report: Report, energy: Energy) -> dict[str, object]:
    t = report.traffic
    sizes = {"dense_fp32": t.dense_fp32_bytes, "dense_bf16": t.dense_bf16_bytes, "wire": t.wire_bytes}
    values = {name: {"kwh": energy.kwh(size), "co2_g": energy.co2_g(size)} for name, size in sizes.items()}
    return {**asdict(energy), "factors": "given by the operator", **values}


def _stated_json(report: Report) -> dict[str, object] | None:
    """The version whose quality stands beside the savings, and the bytes that led to it; None where no saving is stated."""
    stated = report.stated
    if report.silence or stated is None or stated.score is None:
        return None
    return {
        "version": stated.version,
        report.metric: stated.score.mean,
        "reported_by": stated.score.reporter or None,
        "measured": not stated.score.reporter,
        **_traffic_json(report.led),
    }


def _cost_json(report: Report, price: Price) -> dict[str, object]:
    sites, whole = cost_by_site(report, price), whole_cost(report, price)
    thousand = {name: 1000 * value / report.rounds for name, value in asdict(whole).items()} if report.rounds else None
    return {
        "currency": price.currency,
        "per_gb": price.per_gb,
        "tariffs": dict(price.tariffs),
        **asdict(whole),
        "per_1000_rounds": thousand,
        "by_site": [_cost_row_json(row) for row in sites],
        "by_tenant": [_cost_row_json(row) for row in cost_by_tenant(sites)],
    }


def _cost_row_json(row: CostRow) -> dict[str, object]:
    values = {name: value for name, value in asdict(row).items() if name != "cost"}
    return values | asdict(row.cost)


def _traffic_json(traffic: Traffic) -> dict[str, object]:
    return {
        "dense_fp32_bytes": traffic.dense_fp32_bytes,
        "dense_bf16_bytes": traffic.dense_bf16_bytes,
        "payload_bytes": traffic.payload_bytes,
        "wire_bytes": traffic.wire_bytes,
        "wire_to_aggregator_bytes": traffic.wire_received_bytes,
        "wire_from_aggregator_bytes": traffic.wire_sent_bytes,
        "relayed_bytes": traffic.relayed_bytes,
        "transfer_seconds": traffic.seconds,
    }


def _version_json(report: Report, row: VersionRow) -> dict[str, object]:
    score = row.score
    return {
        "version": row.version,
        "published": row.published,
        report.metric: score.mean if score else None,
        f"lowest_{report.metric}": score.low if score else None,
        f"highest_{report.metric}": score.high if score else None,
        "reported_by": score.reporter or None if score else None,
        "savings_fp32": row_savings(report, row, row.traffic.dense_fp32_bytes),
        "savings_bf16": row_savings(report, row, row.traffic.dense_bf16_bytes),
        "up": _traffic_json(row.up),
        "down": _traffic_json(row.down),
        "cumulative_wire_bytes": row.cumulative_wire_bytes,
        "participants": row.participants,
        "refused": row.refused,
        "merge_seconds": row.merge_seconds,
    }


def _client_json(report: Report, row: ClientRow) -> dict[str, object]:
    return {
        "name": row.name,
        "keyid": row.keyid,
        "up": _traffic_json(row.up),
        "down": _traffic_json(row.down),
        f"base_{report.metric}": row.base,
        f"first_{report.metric}": row.first,
        f"final_{report.metric}": row.last,
    }


def _dense_json(report: Report) -> dict[str, object] | None:
    dense = report.dense
    if dense is None:
        return None
    base = report.base.mean if report.base else None
    return {
        f"base_{dense.metric}": base if dense.base is None else dense.base,
        f"final_{dense.metric}": dense.final,
        "rounds": dense.rounds,
        "clients": dense.clients,
        "refused": 0,
        "seconds": dense.seconds,
        "dense_fp32_bytes": dense.dense_fp32_bytes,
        "dense_bf16_bytes": dense.dense_fp32_bytes // 2,
        "payload_bytes": dense.dense_fp32_bytes,
        "wire_bytes": dense.wire_bytes,
        "counted": dense.counted,
        "versions": [{"version": number, dense.metric: value} for number, value in enumerate(dense.metrics)],
    }
