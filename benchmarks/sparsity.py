"""What sparse depth costs: the quickstart trained on 5 % of the valid pixels against all of them, same steps.

    python benchmarks/sparsity.py [--steps=400] [--fractions=1.0,0.05] [--out=runs/sparsity]

Everything else is equal: scenes, seed, noise, steps. Evaluation is against dense ground truth. A fraction whose run is
finished in --out is not trained again.
"""

import argparse
import json
import pathlib

from mf_jax.config import loading as configs
from mf_jax.evaluation.evaluate import evaluate
from mf_jax.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fractions", default="1.0,0.05")
    parser.add_argument("--out", default="runs/sparsity")
    arguments = parser.parse_args()
    fractions = [float(f) for f in arguments.fractions.split(",")]
    results = {}
    for fraction in fractions:
        workdir = pathlib.Path(arguments.out) / f"valid_{fraction:g}"
        overrides = [f"data.sparsify.fraction={fraction}", f"train.steps={arguments.steps}"]
        train(configs.load("configs/quickstart.py", overrides), workdir)
        results[fraction] = evaluate(str(workdir), None, [], None)["moge_affine"]
    reference = results[fractions[0]]["abs_rel"]
    for fraction, result in results.items():
        print(
            f"valid {100 * fraction:5.1f} %  AbsRel {result['abs_rel']:.4f}  delta1 {result['delta1']:.4f}  "
            f"constant {result['constant_abs_rel']:.4f}  against {100 * fractions[0]:g} %: "
            f"{100 * (result['abs_rel'] / reference - 1):+.1f} %"
        )
    print(json.dumps({f"{fraction:g}": result for fraction, result in results.items()}))


if __name__ == "__main__":
    main()
