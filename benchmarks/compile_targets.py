"""What the real models need and can reach on TPUs that are not there: python benchmarks/compile_targets.py [NAME ...]

Prints the command and the report of each target, all of them unless named; needs the extra `tpu`. A target takes from
minutes to an hour of 2 cores. Exit status 1 if one does not fit.
"""

import subprocess
import sys

# Parameters in 16 parts along one axis of the slice, whole along the other: the autoencoder's 128 channels cannot be
# cut into 256.
SQUARE = ("mesh.data=16", "mesh.fsdp=16")
TARGETS = {
    "mofo_370m-v5e-16": ("mofo_370m", "v5e:4x4", "train.batch=1024", "train.accumulate=4"),
    "mofo_3b-v5e-256": ("mofo_3b", "v5e:16x16", *SQUARE),
    "mofo_3b-v5p-64": ("mofo_3b", "v5p:4x4x4"),
    "flux2_klein_9b-v5p-128": ("flux2_klein_9b", "v5p:4x4x8"),
    "flux2_klein_9b-v6e-256": ("flux2_klein_9b", "v6e:16x16", *SQUARE),
}


def main() -> int:
    names = sys.argv[1:] or list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        print(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names:
        config, topology, *overrides = TARGETS[name]
        arguments = ["compile", f"--config=configs/{config}.py", f"--topology={topology}"]
        arguments += [f"--config.{override}" for override in overrides]
        print(f"$ python -m mf_jax {' '.join(arguments)}", flush=True)
        run = subprocess.run([sys.executable, "-m", "mf_jax", *arguments], stdout=subprocess.PIPE, text=True)
        print(run.stdout, flush=True)
        failed += run.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
