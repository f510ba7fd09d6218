import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.model.sensor import Sensor

FRAMES = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
REALISTIC = Sensor(photons=10, read_noise=2, dead=0.1, stuck=0.1, gain_mismatch=0.05)


def flat(brightness: float, frames: int = 20, side: int = 100) -> np.ndarray:
    return np.full((frames, side, side), brightness, np.float32)


def test_ideal_sensor_reads_the_scene_itself() -> None:
    assert Sensor().is_ideal
    assert Sensor().expose(FRAMES, np.random.default_rng(0)) is FRAMES
    assert not REALISTIC.is_ideal


def test_mid_gray_pixel_collects_the_stated_photons() -> None:
    readings = Sensor(photons=10).expose(flat(0.25), np.random.default_rng(0))
    counts = readings * 20  # a white pixel collects 20
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    # Poisson: mean and variance are 0.25 * 20, to four standard errors of 200,000 counts.
    assert counts.mean() == pytest.approx(5, abs=4 * (5 / 2e5) ** 0.5)
    assert counts.var() == pytest.approx(5, abs=4 * (55 / 2e5) ** 0.5)


def test_read_noise_is_in_electrons() -> None:
    readings = Sensor(photons=1e6, read_noise=3e4).expose(flat(0.5), np.random.default_rng(0))
    # Shot noise of a million photons: 1000 electrons. White is two million.
    assert readings.std() == pytest.approx((3e4**2 + 1e6) ** 0.5 / 2e6, rel=0.01)
    assert readings.mean() == pytest.approx(0.5, abs=1e-3)


def test_noise_is_new_in_every_frame() -> None:
    readings = Sensor(photons=10).expose(flat(0.5, 2), np.random.default_rng(0))
    correlation = np.corrcoef(readings[0].ravel(), readings[1].ravel())[0, 1]
    assert abs(correlation) < 0.05


def test_gain_is_fixed_over_time_and_of_the_stated_spread() -> None:
    readings = Sensor(gain_mismatch=0.05).expose(flat(0.5), np.random.default_rng(0))
    np.testing.assert_array_equal(readings, np.broadcast_to(readings[0], readings.shape))
    gain = readings[0] / 0.5
    assert gain.mean() == pytest.approx(1, abs=4 * 0.05 / 100)
    assert gain.std() == pytest.approx(0.05, rel=0.05)


def test_dead_and_stuck_pixels_have_their_shares() -> None:
    pattern = Sensor(dead=0.1, stuck=0.2).draw_pattern((1000, 1000), np.random.default_rng(0))
    assert not (pattern.dead & pattern.stuck).any()
    for pixels, share in ((pattern.dead, 0.1), (pattern.stuck, 0.2)):
        four_standard_errors = 4 * (share * (1 - share) / 1e6) ** 0.5
        assert pixels.mean() == pytest.approx(share, abs=four_standard_errors)


def test_dead_and_stuck_pixels_stay_so() -> None:
    sensor = Sensor(photons=10, dead=0.1, stuck=0.2)
    pattern = sensor.draw_pattern((100, 100), np.random.default_rng(0))
    readings = pattern.expose(flat(0.5), np.random.default_rng(1))
    assert (readings[:, pattern.dead] == 0).all()
    assert (readings[:, pattern.stuck] == 1).all()
    others = ~(pattern.dead | pattern.stuck)
    assert readings[:, others].std(axis=0).min() > 0


def test_readings_are_brightnesses() -> None:
    loud = Sensor(photons=1, read_noise=5, gain_mismatch=1)
    readings = loud.expose(FRAMES, np.random.default_rng(0))
    assert readings.dtype == np.float32
    assert readings.shape == FRAMES.shape
    assert (readings.min(), readings.max()) == (0, 1)


def test_same_seed_gives_the_same_readings() -> None:
    first, second, other = (
        REALISTIC.expose(FRAMES, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_clip_may_be_exposed_in_pieces() -> None:
    whole = REALISTIC.expose(FRAMES, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    pattern = REALISTIC.draw_pattern((6, 7), rng)
    pieces = [pattern.expose(piece, rng) for piece in (FRAMES[:2], FRAMES[2:])]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_scene_is_left_as_it_was() -> None:
    before = FRAMES.copy()
    for sensor in (REALISTIC, Sensor(dead=0.5)):
        sensor.expose(FRAMES, np.random.default_rng(0))
    np.testing.assert_array_equal(FRAMES, before)


def test_a_sensor_tells_what_ails_it() -> None:
    assert str(Sensor(photons=10, gain_mismatch=0.05)) == "photons 10, gain mismatch 0.05"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"photons": 0},
            "photons 0 are not above 0 and up to 1e+09: give 10 for a dim scene, or none at all "
            "for no shot noise",
        ),
        (
            {"photons": float("nan")},
            "photons nan are not above 0 and up to 1e+09: give 10 for a dim scene, or none at all "
            "for no shot noise",
        ),
        (
            {"photons": 10, "read_noise": -1},
            "read noise -1 is not 0 electrons or more and finite: give 2, for instance",
        ),
        (
            {"read_noise": 2},
            "read noise 2 is counted in electrons, which mean nothing without a photon count: "
            "give photons as well",
        ),
        ({"dead": 1}, "share 1 of dead pixels is not in [0, 1): give 0.01 for 1 %"),
        ({"stuck": -0.1}, "share -0.1 of stuck pixels is not in [0, 1): give 0.01 for 1 %"),
        (
            {"dead": 0.5, "stuck": 0.5},
            "shares 0.5 of dead and 0.5 of stuck pixels leave none that works: "
            "make their sum less than 1",
        ),
        ({"gain_mismatch": 1.5}, "gain mismatch 1.5 is not in [0, 1]: give 0.05 for 5 %"),
    ],
)
def test_bad_sensor_is_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        Sensor(**fields)
    assert str(caught.value) == sentence
