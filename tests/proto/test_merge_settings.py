"""Merge settings travel whole in the command that closes a round."""

import pytest

from compeft_core import Compression, MergeParameters
from compeft_core.errors import InputError
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.merge_settings import MergeSettings, settings_of
from compeft_proto.v1 import expert_pb2 as pb

WHOLE = MergeSettings(
    method="trimmed_mean",
    coefficient=0.7,
    compression=Compression(0.2, "mean_magnitude"),
    parameters=MergeParameters(trim=0.25),
    optimizer=ServerOptimizer("fedavgm", 0.5, 0.9),
    codec="rice4",
    max_payload_bytes=12_345,
)


@pytest.mark.parametrize("settings", [MergeSettings(), WHOLE])
def test_settings_come_back_as_they_were_sent(settings: MergeSettings) -> None:
    closing = pb.RoundClosing.FromString(settings.closing("sentiment", "run-1", 3).SerializeToString())
    assert (closing.expert, closing.run, closing.round) == ("sentiment", "run-1", 3)
    assert settings_of(closing) == settings


def test_usual_parameters_and_the_plain_optimizer_cost_no_bytes() -> None:
    closing = MergeSettings().closing("sentiment", "run-1", 3)
    assert not closing.HasField("merge_parameters")
    assert not closing.HasField("optimizer")


def test_an_unknown_codec_is_refused() -> None:
    closing = MergeSettings().closing("sentiment", "run-1", 3)
    closing.codec = "zip"
    with pytest.raises(InputError, match="codec 'zip'"):
        settings_of(closing)
