"""What `show` says of the text of a config: padding, shared rows, and the cost of the frozen networks."""

import re

import pytest

from mf_jax.show import show_config

CONFIG = "def get_config():\n    return {raw!r}\n"


@pytest.fixture
def shown(tmp_path, capsys):
    """A function (raw, *overrides) -> what is printed."""

    def run(raw, *overrides, **options):
        path = tmp_path / "shown.py"
        path.write_text(CONFIG.format(raw=raw))
        show_config(str(path), overrides, **options)
        return capsys.readouterr().out

    return run


def test_padding_of_the_source(shown, make_frozen_config, frames):
    """Captions of 0 to 22 letters; "▁", where there are letters, and </s> around them."""
    lengths = [len(path.read_text()) for path in frames.glob("*.txt")]
    mean = sum(length + 1 + (length > 0) for length in lengths) / len(lengths)
    out = shown(make_frozen_config(frames), "text.expected_tokens=6")
    assert f"text: {mean:.1f} of 24 ids are no padding, {1 - mean / 24:.0%} are (16 captions" in out
    assert re.search(r"rows of the text encoder: 4 for every 8 captions, 0\.500 each, .* captions of 6 tokens", out)
    row, alone, times = (
        float(re.search(pattern, out).group(1))
        for pattern in (
            r"frozen network text, forward of one row of 24 tokens: (\S+)",
            r"without the frozen networks: (\S+);",
            r"with them the step costs (\S+) times as much",
        )
    )
    image = float(re.search(r"frozen network image, forward of one example: (\S+),", out).group(1))
    assert times == pytest.approx((alone + 8 * (image + 0.5 * row)) / alone, abs=0.01)


def test_what_cannot_be_opened_is_not_guessed(shown, make_frozen_config):
    out = shown(make_frozen_config("nowhere"))
    assert "text: how many of 24 ids are padding is not known: data folder 'nowhere' does not exist" in out
    assert "rows of the text encoder: 8 for every 8 captions, 1.000 each, expected for captions of unknown" in out


def test_precomputed_fields_cost_nothing(shown, make_frozen_config):
    out = shown(make_frozen_config("nowhere"), "data.precomputed=('image_latent', 'text_features')")
    assert "with the data come image_latent, text_features" in out
    assert "frozen network" not in out and "rows of the text encoder" not in out
