"""The terms of a private round as a message, and as one plain value of a task."""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import cast

from compeft_core.errors import FormatError
from compeft_core.privacy.gaussian import SEED_BYTES
from compeft_core.privacy.terms import ClientPrivacy, Where
from compeft_proto.v1 import expert_pb2 as pb

SALT_BYTES = 16
"""Random bytes in the manifest of an update to a private round."""
FreshSeed = Callable[[], bytes]


def fresh_seed() -> bytes:
    """32 bytes from the operating system, for the noise of one round."""
    return secrets.token_bytes(SEED_BYTES)


def privacy_to_proto(terms: ClientPrivacy) -> pb.ClientPrivacy:
    """Terms as a message, None as 0."""
    return pb.ClientPrivacy(**{name: value for name, value in asdict(terms).items() if value is not None})


def privacy_from_proto(message: pb.ClientPrivacy) -> ClientPrivacy:
    """A message as terms. Errors: InputError for a value out of range."""
    return ClientPrivacy(
        clip=message.clip,
        noise_multiplier=message.noise_multiplier,
        delta=message.delta,
        where=cast(Where, message.where),
        target_quantile=message.target_quantile or None,
        epsilon=message.epsilon or None,
        residual=message.residual,
        data=message.data,
    )


def privacy_to_text(terms: ClientPrivacy | None) -> str:
    """Terms as JSON, for a task; empty without terms."""
    return "" if terms is None else json.dumps(asdict(terms), sort_keys=True)


def privacy_from_text(text: str) -> ClientPrivacy | None:
    """What `privacy_to_text` made, unchecked. Errors: FormatError if it is malformed; InputError for a value out of range."""
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise FormatError(f"task has invalid terms of privacy {text[:40]!a}: expected JSON") from error
    kinds = {"where": str, "data": str, "residual": bool}
    names = {field.name for field in fields(ClientPrivacy)}
    if not isinstance(values, dict) or set(values) != names:
        raise FormatError(f"task has terms of privacy with other fields than {', '.join(sorted(names))}: upgrade compeft")
    for name, value in values.items():
        optional = name in ("target_quantile", "epsilon") and value is None
        if not optional and not isinstance(value, kinds.get(name, int | float)):
            raise FormatError(f"task has {name} of privacy {value!r}: expected another type")
    return ClientPrivacy(**values)
