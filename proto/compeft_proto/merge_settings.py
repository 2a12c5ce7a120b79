"""MergeSettings: how a round is merged and its result compressed, as a conductor asks for it in a RoundClosing."""

from dataclasses import dataclass

from compeft_core import Codec, Compression, MergeParameters
from compeft_core.merging.inputs import USUAL
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.convert import (
    codec_of,
    compression_from_proto,
    compression_to_proto,
    optimizer_from_proto,
    optimizer_to_proto,
    parameters_from_proto,
    parameters_to_proto,
)
from compeft_proto.v1 import expert_pb2 as pb

PLAIN_METHOD = "average"
PLAIN = ServerOptimizer()
"""FedAvg at rate 1: the step is the merged task vector."""
DOWNLINK = Compression(0.1)
"""A tenth of each merged update travels down."""


@dataclass(frozen=True, slots=True)
class MergeSettings:
    """How the updates of a round are merged, and how the step that follows is compressed and coded for the downlink.

    method: a key of `compeft_core.METHODS`; coefficient: factor of the merged task vector; parameters: those of the method.
    optimizer: what makes a step of the merged task vector.
    max_payload_bytes: the density is lowered until the payload takes no more bytes; 0: no limit.
    """

    method: str = PLAIN_METHOD
    coefficient: float = 1.0
    compression: Compression = DOWNLINK
    parameters: MergeParameters = USUAL
    optimizer: ServerOptimizer = PLAIN
    codec: Codec = "context"
    max_payload_bytes: int = 0

    def closing(self, expert: str, run: str, number: int) -> pb.RoundClosing:
        """The command that closes round `number` of `run` with these settings; usual parameters and the plain optimizer are left out."""
        return pb.RoundClosing(
            expert=expert,
            run=run,
            round=number,
            merge_method=self.method,
            coefficient=self.coefficient,
            merge_parameters=None if self.parameters == USUAL else parameters_to_proto(self.parameters),
            compression=compression_to_proto(self.compression),
            optimizer=None if self.optimizer == PLAIN else optimizer_to_proto(self.optimizer),
            codec=self.codec,
            max_payload_bytes=self.max_payload_bytes,
        )


def settings_of(closing: pb.RoundClosing) -> MergeSettings:
    """The settings that a command names. Errors: InputError if a value is out of range or a name unknown; the method is not looked up."""
    return MergeSettings(
        method=closing.merge_method,
        coefficient=closing.coefficient,
        compression=compression_from_proto(closing.compression),
        parameters=parameters_from_proto(closing),
        optimizer=optimizer_from_proto(closing),
        codec=codec_of(closing.codec) if closing.codec else "context",
        max_payload_bytes=closing.max_payload_bytes,
    )
