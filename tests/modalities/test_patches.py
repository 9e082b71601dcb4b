"""The order of patches and channels against explicit loops.

Legend: B batch, H W pixels, K channels per pixel, N tokens, C = P * P * K channels per token.
"""

import numpy as np
import pytest

from mf_jax.modalities.patches import grid_of, patchify, unpatchify


@pytest.mark.parametrize(("height", "width", "channels", "patch"), [(8, 12, 1, 4), (6, 4, 3, 2), (5, 5, 2, 5)])
def test_order(height, width, channels, patch):
    x = np.arange(2 * height * width * channels).reshape(2, height, width, channels)
    rows, columns = grid_of((height, width), patch, "image")
    tokens = np.asarray(patchify(x, patch))
    assert tokens.shape == (2, rows * columns, patch * patch * channels)
    for b in range(2):
        for i in range(height):
            for j in range(width):
                for k in range(channels):
                    token = (i // patch) * columns + j // patch
                    channel = ((i % patch) * patch + j % patch) * channels + k
                    assert tokens[b, token, channel] == x[b, i, j, k]
    np.testing.assert_array_equal(unpatchify(tokens, (rows, columns), patch), x)


def test_grid():
    assert grid_of((48, 80), 16, "depth") == (3, 5)


@pytest.mark.parametrize(
    ("resolution", "message"),
    [
        ((62, 64), "resolution 62x64 is not divisible by the normals patch size 16; the nearest that is: 64x64"),
        ((64, 39), "resolution 64x39 is not divisible by the normals patch size 16; the nearest that is: 64x32"),
        ((3, 64), "resolution 3x64 is not divisible by the normals patch size 16; the nearest that is: 16x64"),
    ],
)
def test_indivisible_resolution(resolution, message):
    with pytest.raises(ValueError, match=message):
        grid_of(resolution, 16, "normals")
