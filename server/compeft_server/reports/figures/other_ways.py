"""What other ways would have moved for the same transfers: parameters that were counted, times bits a parameter by each way's own rule.

Nothing here is measured. The parameters are those of the transfers that led to the stated version, in both directions; framing, TLS and
acknowledgements of the other ways are left out, and no way's effect on the task metric is known. Bits a parameter:

- 8-bit: one byte and a float32 maximum for each block of 4,096 (bitsandbytes blockwise, as in NVFlare's ModelQuantizer `blockwise8`).
- nf4: four bits and a float32 maximum for each block of 64 (bitsandbytes NF4, as in NVFlare's `normfloat4`).
- SparseLoCo (arXiv 2508.15706): 64 of each 4,096 parameters, 2 bits a value and 12 bits a position.
- STC (arXiv 1903.02891): one of 400 parameters, one sign, positions by Golomb's code: `stc_bits`.
"""

import math
from dataclasses import dataclass

from compeft_server.reports.figures.report import Report

STC_DENSITY = 1 / 400
SPARSELOCO_DENSITY = 64 / 4096
FLOWERTUNE_BUDGET_BYTES = 200_000 * 2**20
"""FlowerTune's budget of communication for one run: 200,000 MB by its tracker, which counts 2^20 bytes a MB."""
GOLDEN = (math.sqrt(5) + 1) / 2


@dataclass(frozen=True, slots=True)
class OtherWay:
    """One way: its name, the bits that it needs a parameter, and how that is counted."""

    name: str
    bits: float
    how: str


@dataclass(frozen=True, slots=True)
class OtherCost:
    """What one way would have moved for the counted parameters."""

    way: OtherWay
    payload_bytes: int


def stc_bits(density: float) -> float:
    """Bits a parameter of sparse ternary compression: Golomb positions and one sign a kept value (Sattler et al. 2019, eq. 15)."""
    exponent = 1 + math.floor(math.log2(math.log(GOLDEN - 1) / math.log(1 - density)))
    position = exponent + 1 / (1 - (1 - density) ** (2**exponent))
    return float(density * (position + 1))


OTHER_WAYS = (
    OtherWay("dense fp32", 32.0, "4 bytes a parameter"),
    OtherWay("FlowerTune's own counting", 32.0, "its tracker's rule: the float32 arrays of both directions, without framing"),
    OtherWay("dense bf16", 16.0, "2 bytes a parameter"),
    OtherWay("8-bit, blockwise", 8 + 32 / 4096, "1 byte a parameter and 4 bytes a block of 4,096"),
    OtherWay("nf4", 4 + 32 / 64, "4 bits a parameter and 4 bytes a block of 64"),
    OtherWay("SparseLoCo", SPARSELOCO_DENSITY * (2 + 12), "1.56 % kept, 2 bits a value and 12 bits a position, both directions"),
    OtherWay("STC", stc_bits(STC_DENSITY), "0.25 % kept, 1 sign and a Golomb-coded position each, both directions"),
)


def other_costs(report: Report) -> tuple[OtherCost, ...]:
    """Every way's bytes for the parameters that led to the stated version; none where no saving is stated."""
    if report.silence:
        return ()
    parameters = report.led.dense_fp32_bytes / 4
    return tuple(OtherCost(way, math.ceil(parameters * way.bits / 8)) for way in OTHER_WAYS)


def budget_shares(report: Report) -> tuple[float, float]:
    """The parts of FlowerTune's budget that the led transfers take: by its tracker's rule, and by the payload that was counted."""
    return report.led.dense_fp32_bytes / FLOWERTUNE_BUDGET_BYTES, report.led.payload_bytes / FLOWERTUNE_BUDGET_BYTES
