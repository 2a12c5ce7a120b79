"""The arithmetic of an update, without a server or a directory."""

from dataclasses import replace

import numpy as np
import pytest

from compeft_client.exchange.update_coding import UpdateLimits, coded_update, most_bytes
from compeft_core import Compression, Layout, Vector, decode, densify, layout_of, unflatten
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.frozen_tensors import A_ENDING
from compeft_proto.round_task import RoundTask

LAYOUT = layout_of({"q.lora_A.weight": (8, 200), "q.lora_B.weight": (200, 8), "bn.running_var": (4,)}, ["bn.running_var"])
TASK = RoundTask("lora", "run", 1, b"n" * 16, 0, Compression(0.1), codec="rice")
FREE = UpdateLimits()


def vectors(layout: Layout = LAYOUT) -> tuple[Vector, Vector, Vector]:
    rng = np.random.default_rng(0)
    trained, residual = (rng.normal(0, 1e-3, layout.size).astype(np.float32) for _ in range(2))
    return trained, residual, np.ones(layout.size, np.float32)


def test_the_update_and_what_it_leaves_behind_add_up_to_task_vector_and_residual() -> None:
    trained, residual, synced = vectors()
    made = coded_update(LAYOUT, TASK, (trained, residual, synced), FREE, 1)
    np.testing.assert_array_equal(made.target, trained + residual)
    carried = densify(decode(made.encoded))
    assert np.count_nonzero(carried[: LAYOUT.ternary_size]) == 320
    assert np.linalg.norm(made.target - carried) < np.linalg.norm(made.target)


def test_what_rests_is_kept_in_the_target_and_not_sent() -> None:
    trained, residual, synced = vectors()
    trained[:1600] = 0
    made = coded_update(LAYOUT, replace(TASK, resting=(A_ENDING,)), (trained, residual, synced), FREE, 1)
    assert not densify(decode(made.encoded))[:1600].any()
    np.testing.assert_array_equal(made.target[:1600], residual[:1600])


def test_training_that_changed_what_rests_is_refused() -> None:
    trained, residual, synced = vectors()
    trained[3] = 0.5
    with pytest.raises(InputError, match="training changed 1 parameters there"):
        coded_update(LAYOUT, replace(TASK, resting=(A_ENDING,)), (trained, residual, synced), FREE, 1)


def test_a_variance_is_not_sent_below_zero_and_the_rest_stays_in_the_target() -> None:
    trained, residual, synced = vectors()
    trained[-4:], residual[-4:] = -0.999, -0.5
    made = coded_update(LAYOUT, TASK, (trained, residual, synced), FREE, 1)
    assert (synced[-4:] + densify(decode(made.encoded))[-4:] > 0).all()
    np.testing.assert_array_equal(made.target[-4:], np.float32(-0.999) + np.float32(-0.5))


def test_a_task_vector_of_another_length_is_refused() -> None:
    _, residual, synced = vectors()
    with pytest.raises(LayoutMismatchError, match="task vector has shape"):
        coded_update(LAYOUT, TASK, (np.zeros(3, np.float32), residual, synced), FREE, 1)


@pytest.mark.parametrize(
    ("asked", "limits", "expected"),
    [
        (0, UpdateLimits(), 0),
        (500, UpdateLimits(), 500),
        (500, UpdateLimits(most_bytes=300), 300),
        (0, UpdateLimits(most_seconds=2.0), 0),
        (0, UpdateLimits(most_seconds=2.0, bytes_per_s=400.0), 800),
        (500, UpdateLimits(900, 2.0, 400.0), 500),
    ],
)
def test_the_smallest_limit_holds(asked: int, limits: UpdateLimits, expected: int) -> None:
    assert most_bytes(LAYOUT, replace(TASK, max_payload_bytes=asked), limits) == expected


def test_a_rate_that_is_too_low_for_any_update_allows_the_smallest() -> None:
    least = most_bytes(LAYOUT, TASK, UpdateLimits(most_seconds=0.001, bytes_per_s=1.0))
    made = coded_update(LAYOUT, TASK, vectors(), UpdateLimits(most_seconds=0.001, bytes_per_s=1.0), 1)
    assert 0 < len(made.encoded.blob) <= least


def test_what_all_classes_of_a_head_have_in_common_does_not_travel() -> None:
    layout = layout_of({"head.weight": (20, 8), "head.bias": (20,), "q.lora_B.weight": (30, 8)})
    trained = np.random.default_rng(1).normal(0, 1e-3, layout.size).astype(np.float32)
    head = unflatten(layout, trained)["head.weight"]
    head[2:] = head[2]  # classes of which this client has no rows
    task = replace(TASK, compression=Compression(1.0), centred=("head.weight", "head.bias"))
    made = coded_update(layout, task, (trained, np.zeros_like(trained), np.zeros_like(trained)), FREE, 1)
    assert not unflatten(layout, made.target)["head.weight"][2:].any()
    np.testing.assert_array_equal(
        unflatten(layout, made.target)["q.lora_B.weight"], unflatten(layout, trained)["q.lora_B.weight"]
    )
