"""The base model that an expert is bound to: its id, revision and weights digest, and the hard error where another one is used."""

from dataclasses import dataclass

from compeft_core.errors import FormatError
from compeft_proto.chunk_refs import check_digest
from compeft_proto.errors import WrongBaseError
from compeft_proto.round_task import NOBODY_SAYS, Origin
from compeft_proto.v1 import expert_pb2 as pb

MAX_ID = 256
"""Most characters of an id and of a revision."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """Which base model. id, such as org/name, and revision are "" if unknown; weights_digest has 32 bytes; the digests of the tokenizer and
    of its chat template have 32 or, if unknown, 0.
    """

    id: str
    revision: str
    weights_digest: bytes
    tokenizer_digest: bytes = b""
    chat_template_digest: bytes = b""

    def __str__(self) -> str:
        """For people: org/name at revision (weights 0123456789abcdef)."""
        at = f" at {self.revision}" if self.revision else ""
        return f"{self.id or 'of no name'}{at} (weights {self.weights_digest.hex()[:16]})"


NO_BASE_MODEL = BaseModel("", "", NOBODY_SAYS)


def base_model_of(message: pb.Genesis | pb.UpdateManifest) -> BaseModel:
    """The base model of a genesis or an update. Errors: FormatError if its two digests differ, or a name is invalid."""
    said = message.base_model
    check_digest(message.base_model_digest, "base model")
    if said.weights_digest and said.weights_digest != message.base_model_digest:
        raise FormatError(
            f"base model has weights {said.weights_digest.hex()[:16]!r}, base_model_digest says {message.base_model_digest.hex()[:16]!r}"
        )
    for word in (said.id, said.revision):
        if len(word) > MAX_ID or not word.isprintable():
            raise FormatError(f"base model's id or revision {word[:40]!a}, expected up to {MAX_ID} printable characters")
    for name, digest in (("tokenizer", said.tokenizer_digest), ("chat template", said.chat_template_digest)):
        if digest:
            check_digest(digest, name)
    return said_with(said, message.base_model_digest)


def said_with(said: pb.BaseModel, weights_digest: bytes) -> BaseModel:
    """What a message says of a base model, whose weights digest stands beside it."""
    return BaseModel(said.id, said.revision, weights_digest, said.tokenizer_digest, said.chat_template_digest)


def base_model_to_proto(origin: Origin) -> pb.BaseModel | None:
    """What an origin says of its base model as a message; None if that is nothing. The weights digest has a field of its own."""
    made = pb.BaseModel(
        id=origin.base_model,
        revision=origin.base_revision,
        tokenizer_digest=origin.tokenizer_digest,
        chat_template_digest=origin.chat_template_digest,
    )
    return made if made.ByteSize() else None


def stated(origin: Origin) -> BaseModel | None:
    """The base model that an origin states; None if it states none."""
    if origin.base_model_digest == NOBODY_SAYS:
        return None
    return BaseModel(
        origin.base_model, origin.base_revision, origin.base_model_digest, origin.tokenizer_digest, origin.chat_template_digest
    )


def check_base_model(used: BaseModel, expert: str, bound: BaseModel) -> None:
    """An expert fits the base model that it was made for, and no other: the weights are the same, and so are id and revision where both
    sides say them, and so are tokenizer and chat template. Errors: WrongBaseError that names both.
    """
    pairs = ((used.id, bound.id), (used.revision, bound.revision))
    if used.weights_digest != bound.weights_digest or any(a and b and a != b for a, b in pairs):
        raise WrongBaseError(f"trained on base model {used}, {expert} is bound to {bound}")
    for name, one, other in (
        ("tokenizer", used.tokenizer_digest, bound.tokenizer_digest),
        ("chat template", used.chat_template_digest, bound.chat_template_digest),
    ):
        if one and other and one != other:
            raise WrongBaseError(
                f"trained with {name} {one.hex()[:16]}, {expert} is bound to {name} {other.hex()[:16]}: load the {name} that comes with "
                f"the base model {bound}"
            )
