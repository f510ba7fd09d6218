import numpy as np
import pytest

from scotopia.model.errors import InputError
from scotopia.model.sampling import sample_mask


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
