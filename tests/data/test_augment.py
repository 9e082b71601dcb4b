import numpy as np
import pytest

from mf_jax.config import loading as configs
from mf_jax.data.augment import AugmentConfig, jitter_colour, random_window


def windows(frame, resolution, smallest, count=2000):
    rng = np.random.default_rng(0)
    drawn = [random_window(frame, resolution, smallest, rng) for _ in range(count)]
    return np.array([[rows.start, rows.stop, columns.start, columns.stop] for rows, columns in drawn]).T


@pytest.mark.parametrize(
    ("frame", "resolution", "largest"),
    [((60, 80), (48, 64), (60, 80)), ((60, 80), (8, 8), (60, 60)), ((9, 6), (4, 4), (6, 6))],
)
def test_windows_have_the_aspect_and_sides_asked_for_and_reach_every_edge(frame, resolution, largest):
    top, bottom, left, right = windows(frame, resolution, 0.5)
    height, width = bottom - top, right - left
    assert top.min() == 0 and left.min() == 0 and bottom.max() == frame[0] and right.max() == frame[1]
    for side, whole in ((height, largest[0]), (width, largest[1])):
        assert side.min() == round(0.5 * whole) and side.max() == whole
    assert np.abs(height * largest[1] / largest[0] - width).max() <= 1.2  # both are rounded


def test_windows_are_uniform_in_size_and_place():
    """Means and variances of uniform variables, to four standard errors of 2000 draws."""
    top, bottom, left, _ = windows((600, 800), (48, 64), 0.6)
    share = (bottom - top) / 600
    assert share.mean() == pytest.approx(0.8, abs=0.011) and share.var() == pytest.approx(0.16 / 12, rel=0.08)
    place = top[share < 0.95] / (600 - (bottom - top)[share < 0.95])
    assert place.mean() == pytest.approx(0.5, abs=0.03) and place.var() == pytest.approx(1 / 12, rel=0.1)
    assert abs(np.corrcoef(place, left[share < 0.95])[0, 1]) < 0.1


def test_no_crop_is_the_largest_window():
    assert random_window((60, 80), (48, 64), 1.0, np.random.default_rng(0)) == (slice(0, 60), slice(0, 80))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_strength_0_is_the_same_picture(picture):
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for image in (picture, levels):
        np.testing.assert_array_equal(jitter_colour(image, 0.0, np.random.default_rng(0)), image)


def test_changes_grow_with_the_strength_and_stay_pictures(picture):
    means = []
    for strength in (0.1, 0.3, 1.0):
        changes = []
        for seed in range(40):
            got = jitter_colour(picture, strength, np.random.default_rng(seed))
            assert got.dtype == np.uint8 and got.shape == picture.shape
            changes.append(np.abs(got.astype(float) - picture).mean())
        assert min(changes) > 0
        means.append(np.mean(changes))
    assert 2 * means[0] < means[1] and 1.5 * means[1] < means[2]


class Draws:
    """A generator whose uniform() returns what it is told: three powers, three gains, then the other three."""

    def __init__(self, log_power=(0, 0, 0), gain=(0, 0, 0), rest=(0, 0, 0)):
        self.next = [np.array(log_power, float), np.array(gain, float), np.array(rest, float)]

    def uniform(self, low, high, size):
        assert (np.abs(self.next[0]) <= high).all() and low == -high and size == 3
        return self.next.pop(0)


def test_each_change_by_itself():
    image = np.array([[[50, 100, 150], [200, 100, 0]]], np.uint8)
    x = image.astype(float)

    def expect(values, **draws):
        got = jitter_colour(image, 0.8, Draws(**draws))
        np.testing.assert_array_equal(got, np.clip(np.round(values), 0, 255))

    expect(255 * (x / 255) ** np.exp([0.4, -0.2, 0]), log_power=[0.4, -0.2, 0])
    expect(x * [1.4, 0.6, 1], gain=[0.4, -0.4, 0])
    expect(x * 1.5, rest=[0.5, 0, 0])
    grey = x @ [0.299, 0.587, 0.114]
    expect(grey.mean() + 0.25 * (x - grey.mean()), rest=[0, -0.75, 0])
    expect(grey[..., None] + 0.5 * (x - grey[..., None]), rest=[0, 0, -0.5])
    lower = grey.mean() + 0.5 * (x - grey.mean())
    lower_grey = lower @ [0.299, 0.587, 0.114]
    expect(lower_grey[..., None] + 1.5 * (lower - lower_grey[..., None]), rest=[0, -0.5, 0.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1}, r"data\.augment\.flip is 1; it must be True or False"),
        ({"crop": 0.0}, r"data\.augment\.crop is 0\.0; it must be above 0 and at most 1"),
        ({"crop": 1.5}, r"data\.augment\.crop is 1\.5; it must be above 0 and at most 1"),
        ({"crop": "half"}, r"data\.augment\.crop is 'half'; it must be a number"),
        ({"crop": float("nan")}, r"data\.augment\.crop is nan"),
        ({"colour": -0.1}, r"data\.augment\.colour is -0\.1; it must be a number and at least 0"),
        ({"colour": 1.1}, r"data\.augment\.colour is 1\.1; it must be at most 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**settings)


def test_the_config_is_completed_and_overridden(make_tiny_config):
    raw = make_tiny_config()
    assert configs.resolve(raw).data.augment == AugmentConfig()
    raw["data"]["augment"] = {"flip": True}
    config = configs.resolve(raw, ["data.augment.crop=0.6", "data.cache=True"])
    assert config.data.augment == AugmentConfig(flip=True, crop=0.6) and config.data.cache is True
    assert configs.resolve(configs.to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.augment.crpo=0.5", r"unknown config key data\.augment\.crpo; did you mean 'crop'"),
        ("data.augment.crop=0", r"data\.augment\.crop is 0\.0"),
        ("data.augment.flip=2", r"data\.augment\.flip is bool"),
        ("data.cache=1", r"data\.cache is bool"),
    ],
)
def test_bad_overrides(make_tiny_config, override, message):
    with pytest.raises(ValueError, match=message):
        configs.resolve(make_tiny_config(), [override])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"augment": {"color": 0.1}}, r"unknown config key data\.augment\.color; did you mean 'colour'"),
        ({"cache": "yes"}, r"data\.cache is 'yes'; it must be True or False"),
    ],
)
def test_bad_configs(make_tiny_config, data, message):
    raw = make_tiny_config()
    raw["data"] |= data
    with pytest.raises(ValueError, match=message):
        configs.resolve(raw)
