"""Two-colour surface patterns, filtered over the footprint of a pixel.

Legend: N samples. u, v surface coordinates in cells; du, dv footprint of one pixel along u and v in cells.

A regular pattern is built from pulse trains, whose mean over an interval has a closed form; so a pattern
fades to its mean colour towards the horizon as a camera would see it, with one sample per pixel.
"""

import numpy as np

from mf_jax.data.procedural.scene import PatternKind

NOISE_SIZE = 64


def noise_table(seed: int) -> np.ndarray:
    """(NOISE_SIZE, NOISE_SIZE) float32 in [0, 1): the lattice values of one scene's noise."""
    return np.random.default_rng(seed).random((NOISE_SIZE, NOISE_SIZE), np.float32)


def pulse(x_N: np.ndarray, width_N: np.ndarray, duty: float) -> np.ndarray:
    """Mean over [x - width/2, x + width/2] of the wave that is 1 on [k, k + duty), 0 on [k + duty, k + 1)."""

    def integral(y_N):
        whole_N = np.floor(y_N)
        return whole_N * duty + np.minimum(y_N - whole_N, duty)

    width_N = np.maximum(width_N, 1e-3)
    return (integral(x_N + 0.5 * width_N) - integral(x_N - 0.5 * width_N)) / width_N


def value_noise(table: np.ndarray, u_N: np.ndarray, v_N: np.ndarray, width_N: np.ndarray | np.float32) -> np.ndarray:
    """Smooth noise in [0, 1], one lattice value per cell; fades to 0.5 where a pixel outgrows a cell."""
    u0_N, v0_N = np.floor(u_N), np.floor(v_N)
    fu_N, fv_N = u_N - u0_N, v_N - v0_N
    fu_N, fv_N = fu_N * fu_N * (3 - 2 * fu_N), fv_N * fv_N * (3 - 2 * fv_N)
    i_N, j_N = u0_N.astype(np.int32), v0_N.astype(np.int32)
    mask = NOISE_SIZE - 1
    i0_N, i1_N = (i_N & mask) * NOISE_SIZE, ((i_N + 1) & mask) * NOISE_SIZE
    j0_N, j1_N = j_N & mask, (j_N + 1) & mask
    flat = table.ravel()
    low_N, high_N = flat.take(i0_N + j0_N), flat.take(i0_N + j1_N)
    low_N = low_N + (high_N - low_N) * fv_N
    next_N, high_N = flat.take(i1_N + j0_N), flat.take(i1_N + j1_N)
    next_N = next_N + (high_N - next_N) * fv_N
    return 0.5 + (low_N + (next_N - low_N) * fu_N - 0.5) / (1 + width_N * width_N)


def fractal_noise(table: np.ndarray, u_N: np.ndarray, v_N: np.ndarray, width_N: np.ndarray | np.float32) -> np.ndarray:
    """Two octaves of `value_noise`, stretched to use [0, 1] well."""
    coarse_N = value_noise(table, u_N, v_N, width_N)
    fine_N = value_noise(table, 3.1 * u_N + 17.3, 3.1 * v_N + 5.7, 3.1 * width_N)
    return np.clip(0.5 + 1.5 * (0.6 * coarse_N + 0.4 * fine_N - 0.5), 0, 1)


def pattern(
    kind: PatternKind, table: np.ndarray, u_N: np.ndarray, v_N: np.ndarray, du_N: np.ndarray, dv_N: np.ndarray
) -> np.ndarray:
    """Share of the accent colour in each sample: (N,) float32 in [0, 1]."""
    if kind == "plain":
        return np.zeros_like(u_N)
    if kind == "noise":
        return fractal_noise(table, u_N, v_N, np.sqrt(du_N * dv_N))
    if kind == "stripes":
        return pulse(0.5 * u_N, 0.5 * du_N, 0.5)
    if kind == "checker":
        across_N, along_N = pulse(0.5 * u_N, 0.5 * du_N, 0.5), pulse(0.5 * v_N, 0.5 * dv_N, 0.5)
        return across_N + along_N - 2 * across_N * along_N
    if kind == "tiles":
        return 1 - pulse(u_N, du_N, 0.92) * pulse(v_N, dv_N, 0.92)
    if kind == "bricks":
        row_N = np.floor(2.5 * v_N)
        return 1 - pulse(u_N + 0.5 * (row_N % 2), du_N, 0.93) * pulse(2.5 * v_N, 2.5 * dv_N, 0.85)
    if kind != "planks":
        raise ValueError(f"no pattern is called {kind!r}")
    board_N = np.floor(u_N)
    shade_N = table[1].take(board_N.astype(np.int32) & (NOISE_SIZE - 1))
    shade_N = 0.35 + (shade_N - 0.5) * 0.6 / (1 + du_N * du_N)
    gap_N = 1 - pulse(u_N, du_N, 0.9)
    grain_N = value_noise(table, 4 * u_N, 0.7 * v_N, 4 * du_N) - 0.5
    return np.clip(shade_N + 0.4 * gap_N + 0.3 * grain_N, 0, 1)
