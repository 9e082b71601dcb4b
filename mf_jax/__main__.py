"""The command line: python -m mf_jax VERB ... (train, sample, evaluate, showcase, show, compile, import, export)."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mf_jax.parallel.stopping import guarded_output

if TYPE_CHECKING:
    from mf_jax.config.config import Config
    from mf_jax.parallel.processes import ProcessGroup

OVERRIDES = "a value of the config: --config.train.steps=300, --config.data.source.seed=1, ..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mf_jax", description="Train, sample and evaluate Modality Forcing models.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str, overrides: bool) -> argparse.ArgumentParser:
        epilog = f"--config.KEY=VALUE overrides {OVERRIDES}" if overrides else None
        return verbs.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)

    train = verb("train", "train a model; the same command goes on from the latest checkpoint", True)
    train.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config file, see configs/")
    train.add_argument("--workdir", required=True, metavar="DIR", help="of this run: checkpoints, metrics")

    sample = verb("sample", "make images and depth from a prompt, an image or a depth map", True)
    sample.add_argument("--checkpoint", required=True, metavar="DIR", help="the --workdir of a run, or an export")
    sample.add_argument("--prompt", default="", help="what to show (default: the empty prompt)")
    sample.add_argument("--image", metavar="FILE", help="an image to condition on: its depth is made")
    sample.add_argument("--depth", metavar="FILE", help=".npy or 16-bit PNG to condition on: an image for it is made")
    sample.add_argument("--partial", action="store_true", help="with --depth: follow it loosely (partial conditioning)")
    sample.add_argument("--steps", type=int, help="Euler steps (default: sample.steps of the config)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch", type=int, default=1, help="how many samples")
    sample.add_argument("--mu", type=float, help="shift of the noise-level grid (default: sample.mu)")
    sample.add_argument(
        "--guidance", type=float, help="classifier-free guidance scale (default: sample.guidance; from an image 1)"
    )
    sample.add_argument(
        "--guide", metavar="NAME", help="modality that guidance acts on, or all (default: sample.guide)"
    )
    sample.add_argument("--log2-alpha", type=float, help="warp of the depth's schedule in joint and partial sampling")
    sample.add_argument(
        "--refine-depth", action="store_true", help="joint: estimate the depth anew from the made image"
    )
    sample.add_argument("--fov-deg", type=float, default=65.0, help="horizontal field of view of the point cloud")
    sample.add_argument("--edge-rtol", type=float, default=0.04, help="relative depth step at which points are dropped")
    sample.add_argument("--output-dir", default="outputs", metavar="DIR")

    evaluate = verb("evaluate", "measure image->depth on held-out data", True)
    evaluate.add_argument("--checkpoint", required=True, metavar="DIR", help="the --workdir of a run, or an export")
    evaluate.add_argument("--config", metavar="FILE[:ARG]", help="take the sections data and evaluate from this config")
    evaluate.add_argument("--output", metavar="DIR", help="where to write (default: the checkpoint's directory)")

    showcase = verb("showcase", "sample a trained model in every mode on held-out records, as one picture", False)
    showcase.add_argument("--checkpoint", required=True, metavar="DIR", help="the --workdir of a run, or an export")
    showcase.add_argument("--count", type=int, default=8, help="records shown in every mode (default: 8)")
    showcase.add_argument("--steps", type=int, help="Euler steps of joint, d2i, partial (default: sample.steps)")
    showcase.add_argument("--output", metavar="DIR", help="where to write (default: the checkpoint's directory)")

    show = verb("show", "print a config and its model, or a checkpoint and its digests, without training", True)
    what = show.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE[:ARG]")
    what.add_argument("--checkpoint", metavar="DIR", help="the --workdir of a training run")
    show.add_argument("--devices", type=int, help="with --config: that the mesh is laid over (default: those here)")

    aot = verb("compile", "compile the training step for devices that need not be there: memory, time", True)
    aot.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config file, see configs/")
    aot.add_argument("--topology", metavar="NAME", help="v5e:4x4, v5p:4x4x4, h200:1x2x8 (default: the devices at hand)")
    aot.add_argument("--slices", type=int, default=1, help="number of TPU slices of that topology (default: 1)")
    aot.add_argument("--search", action="store_true", help="find the fastest mesh, batch and remat that fit")

    bring = verb("import", "published weights (FLUX.2, the official model) to a checkpoint to start from", True)
    bring.add_argument("--source", required=True, metavar="PATH", help="safetensors file, or a directory of them")
    bring.add_argument("--config", required=True, metavar="FILE[:ARG]", help="of the model to make")
    bring.add_argument("--workdir", required=True, metavar="DIR", help="new directory for the checkpoint")

    export = verb("export", "a checkpoint as safetensors with config and model card", False)
    export.add_argument("--checkpoint", required=True, metavar="DIR", help="the --workdir of a run or an import")
    export.add_argument("--output", required=True, metavar="DIR", help="new directory")
    export.add_argument("--layout", default="own", help="own (any model) or official (FLUX.2 type; default: own)")
    export.add_argument("--weights", default="ema", help="ema or params (default: ema)")
    export.add_argument("--dtype", default="fp32", help="fp32 or bf16 (default: fp32)")
    for reader in (sample, evaluate, showcase, show, export):
        reader.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
        reader.add_argument(
            "--trust-code", action="store_true", help="import the modules that the config in --checkpoint's DIR names"
        )
    for runner in (train, sample, evaluate):
        several = runner.add_argument_group("several processes", "one per host: each runs the same command")
        several.add_argument("--distributed", metavar="auto", help="as Cloud TPU, GKE, Slurm or Open MPI have it")
        several.add_argument("--coordinator", metavar="HOST:PORT", help="or: the address of process 0")
        several.add_argument("--processes", type=int, metavar="N", help="with --coordinator: how many there are")
        several.add_argument("--process", type=int, metavar="I", help="with --coordinator: which this is, from 0")
        several.add_argument(
            "--init-timeout", type=float, metavar="SECONDS", help="how long to wait for all to be there (default: 300)"
        )
    return parser


def _run(arguments: argparse.Namespace, overrides: list[str], began: float) -> int:
    if arguments.verb == "show":
        from mf_jax import show

        if arguments.checkpoint:
            if overrides:
                raise ValueError(
                    f"--config.{overrides[0]}: a checkpoint is shown as it is, its config is not overridden"
                )
            show.show_checkpoint(arguments.checkpoint, arguments.step, arguments.trust_code)
        else:
            show.show_config(arguments.config, overrides, arguments.devices)
    elif arguments.verb == "train":
        _train(arguments, overrides, began)
    elif arguments.verb == "compile":
        from mf_jax.aot import run

        return run.compile_config(arguments.config, overrides, arguments.topology, arguments.slices, arguments.search)
    elif arguments.verb == "sample":
        from mf_jax.inference import sample

        with _joined(arguments, _facts_of_command(arguments, overrides)) as group:
            sample.sample(arguments, overrides, group)
    elif arguments.verb == "import":
        from mf_jax.config import loading as config
        from mf_jax.interop import import_weights

        import_weights.import_weights(arguments.source, config.load(arguments.config, overrides), arguments.workdir)
    elif arguments.verb == "export":
        from mf_jax.interop import export

        if overrides:
            raise ValueError(f"--config.{overrides[0]}: a checkpoint is exported with the config that it has")
        settings = {name: getattr(arguments, name) for name in ("layout", "weights", "dtype", "step", "trust_code")}
        for path in export.export(arguments.checkpoint, arguments.output, **settings):
            print(path)
    elif arguments.verb == "showcase":
        from mf_jax.evaluation import showcase

        if overrides:
            raise ValueError(f"--config.{overrides[0]}: a model is shown with the config that it has")
        settings = {name: getattr(arguments, name) for name in ("output", "count", "steps", "step", "trust_code")}
        showcase.showcase(arguments.checkpoint, **settings)
    else:
        from mf_jax.config import loading as config
        from mf_jax.evaluation import evaluate

        loaded = config.load(arguments.config, overrides) if arguments.config else None
        facts = _facts_of_command(arguments, overrides) | ({} if loaded is None else _facts_of_config(loaded))
        settings = {name: getattr(arguments, name) for name in ("output", "step", "trust_code")}
        with _joined(arguments, facts) as group:
            evaluate.evaluate(arguments.checkpoint, loaded, overrides, group=group, **settings)
    return 0


def _train(arguments: argparse.Namespace, overrides: list[str], began: float) -> None:
    from mf_jax import train
    from mf_jax.config import loading as config

    loaded = config.load(arguments.config, overrides)
    after_death = "; the last checkpoint is kept, the same command goes on from there"
    with _joined(arguments, _facts_of_config(loaded), after_death) as group:
        train.train(loaded, arguments.workdir, group, began)


def _joined(
    arguments: argparse.Namespace, facts: Mapping[str, str], after_death: str = ""
) -> contextlib.AbstractContextManager[ProcessGroup]:
    """distributed.joined, of the processes that the command line describes."""
    from mf_jax.parallel import cluster, distributed

    spec = cluster.find(
        arguments.distributed, arguments.coordinator, arguments.processes, arguments.process, arguments.init_timeout
    )
    return distributed.joined(spec, facts, _explain, arguments.verb, after_death)


def _facts_of_config(loaded: Config) -> dict[str, str]:
    """Every value of a config in writing, which has to be the same in all processes."""
    import jax

    from mf_jax.config import loading as config

    leaves, _ = jax.tree_util.tree_flatten_with_path(config.to_dict(loaded), is_leaf=lambda x: not isinstance(x, dict))
    return {f"config.{jax.tree_util.keystr(path, simple=True, separator='.')}": repr(value) for path, value in leaves}


def _facts_of_command(arguments: argparse.Namespace, overrides: Sequence[str]) -> dict[str, str]:
    """The same of a command that has no config of its own: its options, but for those of the processes."""
    own = ("distributed", "coordinator", "processes", "process", "init_timeout")
    options = {name: value for name, value in vars(arguments).items() if name not in own}
    return {f"--{name.replace('_', '-')}": repr(value) for name, value in options.items()} | {
        f"--config.{override.partition('=')[0]}": override.partition("=")[2] for override in overrides
    }


def _explain(error: Exception) -> tuple[str, int] | None:
    """Message and exit status of an expected failure; None for a bug, which keeps its traceback."""
    from mf_jax.monitoring.metrics import NotFinite
    from mf_jax.parallel.distributed import Missing

    if isinstance(error, NotFinite):
        return f"stopped: {error}; the last checkpoint is kept", 1
    if isinstance(error, Missing):
        return f"stopped: {error}", 1
    if isinstance(error, ValueError):
        return f"error: {error}", 2
    if isinstance(error, OSError):  # a disk, a network: another try may go well, and launchers make one
        return f"error: {error}", 1
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. A user's mistake is one clear message on stderr and exit status 2, other failures 1."""
    began = time.monotonic()
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    arguments = parser.parse_args([a for a in argv if not a.startswith("--config.")])
    try:
        return _run(arguments, overrides, began)
    except Exception as error:
        explained = _explain(error)
        if explained is None:
            raise
        text, status = explained
        with guarded_output([]):
            print(f"mf_jax {arguments.verb}: {text}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
