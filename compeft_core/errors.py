"""Every error this project raises on purpose, as one tree.

    CompeftError                 code: stable name, travels over gRPC and in JSON
    ├── InputError               the caller's values cannot be used: mend the input
    │   ├── NotFiniteError       a parameter or a scale is NaN or infinite
    │   └── LayoutMismatchError  names, shapes or sizes disagree
    ├── FormatError              bytes that are not what they claim to be: do not trust their source
    ├── LimitError               more than a stated cap: raise the cap or send less
    └── SecureSumError           somebody left the protocol of a secure sum

The packages above core add their branches to this tree; none of them raises a bare exception. A message is one line: it names
the thing, the two values that disagree and, where there is one, the way out.
"""


class CompeftError(Exception):
    """Root of the tree. `code` is stable: programs branch on it, the message is for people."""

    code = "error"


class InputError(CompeftError):
    """The caller's values cannot be used."""

    code = "bad_input"


class NotFiniteError(InputError):
    """A parameter or a scale is NaN or infinite."""

    code = "not_finite"


class LayoutMismatchError(InputError):
    """Names, shapes or sizes disagree with the layout."""

    code = "layout_mismatch"


class FormatError(CompeftError):
    """Bytes that are not a canonical encoding of anything."""

    code = "malformed"


class LimitError(CompeftError):
    """More than a stated cap."""

    code = "limit_exceeded"


class SecureSumError(CompeftError):
    """Somebody left the protocol of a secure sum, or too few are left."""

    code = "secure_sum"
