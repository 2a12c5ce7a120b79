"""Error class -> exit code of `compeft`. Imported only when a command failed, because the error classes load numba and gRPC."""

from compeft_core.errors import CompeftError, FormatError, InputError, LimitError
from compeft_proto.errors import RefusedError, TransferError, TrustError

EXIT_CODES: dict[type[CompeftError], int] = {
    CompeftError: 1,
    InputError: 3,
    FormatError: 4,
    LimitError: 5,
    TrustError: 6,
    RefusedError: 7,
    TransferError: 8,
}
"""0: done; 1: any other failure; 2: wrong usage; 3 to 8: by the nearest class in this table; 130: interrupted."""


def exit_code(error: CompeftError) -> int:
    """The code of the nearest class in EXIT_CODES."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)
