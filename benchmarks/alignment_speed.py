"""Time of one exact affine L1 alignment, the fit behind every `moge_affine` score.

    python benchmarks/alignment_speed.py [points]

Prints, for several kinds of problem, the median wall time over 20 fits and the number of residual sorts of one fit.
"""

import statistics
import sys
import time

import numpy as np

from mf_jax.evaluation import alignment


def problems(points: int):
    rng = np.random.default_rng(0)
    pred_N = rng.uniform(0.2, 4.0, points)
    noise_N = rng.lognormal(0.0, 0.2, points)
    yield "noisy affine", pred_N, (1.7 * pred_N + 0.3) * noise_N
    yield "heavy tails", rng.pareto(1.0, points), rng.pareto(1.0, points) + 0.1
    yield "unrelated", pred_N, rng.uniform(1.0, 20.0, points)
    yield "exact affine", pred_N, 1.7 * pred_N + 0.3
    yield "quantised", np.round(pred_N, 1), np.round((1.7 * pred_N + 0.3) * noise_N, 1) + 0.1


def sorts_of_one_fit(pred_N: np.ndarray, gt_N: np.ndarray) -> int:
    profile, calls = alignment._profile, []
    alignment._profile = lambda *arguments: calls.append(None) or profile(*arguments)
    try:
        alignment.fit_affine_l1(pred_N, gt_N, 1 / gt_N)
    finally:
        alignment._profile = profile
    return len(calls)


def main():
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    for name, pred_N, gt_N in problems(points):
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            alignment.fit_affine_l1(pred_N, gt_N, 1 / gt_N)
            seconds.append(time.perf_counter() - start)
        print(f"{name:14s} {points} points: {statistics.median(seconds):.4f} s, {sorts_of_one_fit(pred_N, gt_N)} sorts")


if __name__ == "__main__":
    main()
