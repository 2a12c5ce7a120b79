"""One fuzzing process: the product's decoders instrumented, then atheris until it is told to stop. Started by tests.fuzz.run."""

import sys

import atheris

FORMAT = ("arithmetic_coder", "bits", "block_streams", "context_model", "golomb", "rice4")
KERNELS = [
    "compeft_core.kernels.selection_kernels",
    "compeft_core.merging.block_kernels",
    *(f"compeft_core.format.{name}" for name in FORMAT),
    *(f"compeft_core.product.{name}" for name in ("model", "ranks_and_scales", "trellis", "vectors")),
]
"""Not instrumented: numba compiles them itself."""

with atheris.instrument_imports(include=["compeft_core", "compeft_proto", "compeft_client"], exclude=KERNELS):
    from tests.fuzz.run import CORPUS
    from tests.fuzz.targets import check

TARGET = sys.argv.pop(1)


def one_case(data: bytes) -> None:
    """What atheris calls."""
    check(TARGET, data)


if __name__ == "__main__":
    for seed in (CORPUS / TARGET).iterdir():
        check(TARGET, seed.read_bytes())  # compiles the kernels, which is no hang of theirs
    atheris.Setup(sys.argv, one_case)
    atheris.Fuzz()
