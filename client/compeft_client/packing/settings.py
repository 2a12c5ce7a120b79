"""How to pack: what the options of `pack` and `push` say, checked.

    from compeft_client import PackSettings, save_compressed

    save_compressed("./my-lora", "my.expert", PackSettings(times=200))

Without any setting, LoRA's factors are coded as products, 50 times below bfloat16.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from compeft_client.packing.auto_scale import auto_compression
from compeft_client.packing.base_statistics import BaseStatistics
from compeft_core import Codec, Compression
from compeft_core.errors import InputError
from compeft_proto.convert import compression_of
from compeft_proto.keys import SigningKey

AUTO = "auto"
DENSITY = 0.05
"""Of ternary changes, unless told otherwise."""
TIMES = 50.0
"""How many times fewer bytes than bfloat16 the products take, unless told otherwise: docs/choosing-compression.md has what it is worth."""


@dataclass(frozen=True, slots=True)
class PackSettings:
    """How to pack. LoRA's factors are coded as products unless a density, a scale or a codec asks for ternary changes.

    quality: of products, cos^2 of what is kept with what there was, above 0 and below 1.
    times: of products, how many times fewer bytes than the factors take as bfloat16; neither: TIMES.   budget_bytes: the file takes no
    more.
    density, scale, factor: of ternary changes; `auto` is the data-free rule of `auto_scale`, and no factor is 1, or the rule's.
    base: of products, how much the base model minds an error in each module (`compeft base-stats`); None: all alike.
    exact: without loss, as what changed since `init`, an earlier checkpoint (docs/exact-delta.md).
    init: where the expert started, a directory or `seed:N`; None: nobody knows, which costs ternary changes bytes; products need none.
    statements: what else the manifest says, by keys that begin with `compeft.`; signed, and no part of what is unpacked.
    """

    density: float | None = None
    scale: str | None = None
    factor: float | None = None
    init: str | None = None
    budget_bytes: int | None = None
    codec: Codec | None = None
    key: SigningKey | None = None
    quality: float | None = None
    times: float | None = None
    statements: Mapping[str, str] = field(default_factory=dict)
    base: BaseStatistics | None = None
    exact: bool = False

    @property
    def is_ternary(self) -> bool:
        """Whether ternary changes are asked for."""
        return (self.density, self.scale, self.factor, self.codec) != (None, None, None, None)

    @property
    def compression(self) -> Compression:
        """Of ternary changes, as core knows it. Errors: InputError."""
        density = DENSITY if self.density is None else self.density
        if self.scale in (None, AUTO):
            return auto_compression(density, self.factor)
        return compression_of(density, str(self.scale), 1.0 if self.factor is None else self.factor)

    def check(self) -> None:
        """Errors: InputError for values out of range, or that do not go together."""
        if self.exact and (
            self.is_ternary or (self.quality, self.times, self.base, self.budget_bytes) != (None, None, None, None)
        ):
            raise InputError("--exact keeps every bit: no other option says how much is kept")
        if self.is_ternary and (self.quality, self.times, self.base) != (None, None, None):
            raise InputError(
                "--quality, --times and --base are of products, --density, --scale, --factor and --codec of ternary changes: give one "
                "kind"
            )
        if sum(x is not None for x in (self.quality, self.times, self.budget_bytes)) > 1 and self.quality is not None:
            raise InputError("--quality, --times and --budget all say how much is kept: give --quality, or the other two")
        if self.quality is not None and not 0 < self.quality < 1:
            raise InputError(f"invalid --quality {self.quality:g}: expected a number above 0 and below 1, such as 0.5")
        if self.times is not None and not 1 <= self.times <= 10_000:
            raise InputError(f"invalid --times {self.times:g}: expected 1 to 10000, such as 200")
