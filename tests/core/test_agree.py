"""A few hundred of the cases of `python -m tests.core.agree`."""

from tests.core.agree import run


def test_kernels_and_the_second_decoder_agree_on_random_small_cases() -> None:
    seen = run(300, seed=1)
    assert seen["rice read"] + seen["context read"] == 600
    assert seen["rice4 read"] == 300
    for kind in ("context read", "stream read", "changed, read", "changed, refused"):
        assert seen[kind] > 10
