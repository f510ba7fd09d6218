import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.model.sampling import sample_mask, seen_mask
from scotopia.model.video import Clip


def test_mask_is_the_protocols() -> None:
    expected = np.random.default_rng(7).random((3, 4, 5)) < 0.3
    mask = sample_mask((3, 4, 5), 0.3, 7)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)


def test_mask_never_changes() -> None:
    # NumPy keeps default_rng's uniform doubles stable; every score depends on it.
    assert np.flatnonzero(sample_mask((4, 8, 8), 0.01, 0)).tolist() == [11, 150, 196]


def test_density_one_keeps_every_pixel() -> None:
    assert sample_mask((2, 3, 4), 1.0, 0).all()


@pytest.mark.parametrize(
    ("density", "text"),
    [(0.0, "0"), (-0.5, "-0.5"), (1.5, "1.5"), (float("nan"), "nan"), (float("inf"), "inf")],
)
def test_density_that_is_no_probability_is_refused(density: float, text: str) -> None:
    with pytest.raises(InputError) as caught:
        sample_mask((2, 3, 4), density, 0)
    assert str(caught.value) == f"density {text} is not above 0 and up to 1: give 0.01 for 1 %"


def test_a_clip_of_which_no_pixel_arrives_is_refused_but_for_who_sees_none() -> None:
    clip = Clip("dim", np.zeros((3, 2, 4), np.float32))
    with pytest.raises(InputError) as caught:
        seen_mask(clip.name, clip.frames.shape, 1e-9, 5, ("sample",))
    assert str(caught.value) == (
        "clip dim: no pixel of 3 frame(s) of 4 x 2 arrives at density 1e-09 and seed 5, so that "
        "nothing would be seen: raise the density, or show more or larger frames"
    )
    assert not seen_mask(clip.name, clip.frames.shape, 1e-9, 5, ()).any()
    np.testing.assert_array_equal(
        seen_mask(clip.name, clip.frames.shape, 0.5, 5, ("sample",)), sample_mask((3, 2, 4), 0.5, 5)
    )
