"""Which configs may go on from a checkpoint: what changes what is learned may not change."""

import json
import pathlib
import sys

import jax.numpy as jnp
import pytest

from mf_jax.checkpoint import resume
from mf_jax.checkpoint.manager import Checkpoints
from mf_jax.config.loading import resolve, to_dict
from mf_jax.config.sections import CheckpointConfig
from mf_jax.parallel.processes import ProcessGroup

FOLDER = (
    "data.source={'kind': 'folder', 'root': 'here', 'image': '*.png', 'splits': {'train': '0:9', 'test': '9:'}}",
    "data.source.splits.validation=9:",
)
QWEN3 = ("text.kind=qwen3", "text.checkpoint=here")
TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """With a checkpoint of step 3, whose config `saved_with` rewrites."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig())
    arrays = {"w": jnp.ones(2)}
    checkpoints.save(3, {"params": arrays, "opt_state": arrays}, {"position": 3}, {"seed": 0})
    checkpoints.close()
    return workdir


@pytest.fixture
def saved_with(workdir):
    """(config) -> the workdir of a run of this config, as mappings."""

    def write(config):
        (workdir / "checkpoints" / "3" / "config" / "metadata").write_text(json.dumps(config))
        return workdir

    return write


@pytest.mark.parametrize(
    "changes",
    [
        ["train.log_every=7"],
        ["train.compilation_cache=there"],
        ["train.profile_steps=(1,2)"],
        ["train.dump_hlo=True"],
        ["train.steps=9"],
        ["checkpoint.every=7", "checkpoint.keep=5", "checkpoint.keep_every=10"],
        ["data.workers=3"],
        ["data.cache=True"],
        ["data.source.test=9", "data.source.validation=9"],
        [*FOLDER, "data.source.root=there", "data.source.max_unreadable=3"],
        [*FOLDER, "data.source.splits.test=10:"],
        [*FOLDER, "data.source.splits.validation=10:"],
        [
            *FOLDER,
            "data.source.image_latent=*.a",
            "data.source.text_features=*.b",
            "data.precomputed=('image_latent',)",
        ],
        [*QWEN3, "text.checkpoint=there"],
        [*QWEN3, "text.pack=False", "text.lengths=(8,)", "text.expected_tokens=7", "text.empty_features=there"],
        ["init.checkpoint=there"],
        ["mesh.fsdp=2", "mesh.rules.mlp=()"],
        ["model.attention=xla", "model.remat=full"],
        ["sample.steps=3", "sample.guide=image"],
        ["evaluate.steps=3", "evaluate.depth_range=(1.0, 2.0)"],
    ],
    ids=lambda changes: changes[-1],
)
def test_what_may_change(saved_with, make_tiny_config, changes):
    raw = make_tiny_config()
    before = [change for change in changes if change in (*FOLDER, *QWEN3)]
    workdir = saved_with(to_dict(resolve(raw, before)))
    assert resume.find(workdir, resolve(raw, before), ProcessGroup()) == 3
    assert resume.find(workdir, resolve(raw, changes), ProcessGroup()) == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["seed=1"], "seed: 0 in the checkpoint, 1 now"),
        (["train.batch=16"], "train.batch: 8 in the checkpoint, 16 now"),
        (["train.accumulate=2"], "train.accumulate: 1 in the checkpoint, 2 now"),
        (["train.ema_decay=0.5"], "train.ema_decay: 0.999 in the checkpoint, 0.5 now"),
        (["train.freeze=('text',)"], "train.freeze: () in the checkpoint, ('text',) now"),
        (["optimizer.schedule=cosine", "train.steps=9"], "train.steps: 6 in the checkpoint, 9 now"),
        (["optimizer.learning_rate=0.5"], "optimizer.learning_rate: 0.001 in the checkpoint, 0.5 now"),
        (["optimizer.kind=muon"], "optimizer.muon_learning_rate: None in the checkpoint, 0.001 now"),
        (["data.resolution=(32, 32)"], "data.resolution: (16, 16) in the checkpoint, (32, 32) now"),
        (["data.augment.flip=True"], "data.augment.flip: False in the checkpoint, True now"),
        (["data.sparsify.fraction=0.5"], "data.sparsify.fraction: 0.2 in the checkpoint, 0.5 now"),
        (["data.source.train=33"], "data.source.train: 32 in the checkpoint, 33 now"),
        (["data.source.seed=1"], "data.source.seed: 0 in the checkpoint, 1 now"),
        ([*FOLDER, "data.source.splits.train=0:8"], "data.source.splits.train: '0:9' in the checkpoint, '0:8' now"),
        ([*FOLDER, "data.source.captions=a room"], "data.source.captions: '' in the checkpoint, 'a room' now"),
        (["model.layers=3"], "model.layers: 2 in the checkpoint, 3 now"),
        (["model.dtype=bfloat16"], "model.dtype: 'auto' in the checkpoint, 'bfloat16' now"),
        (["modalities.depth.noise.mu=0.5"], "modalities.depth.noise.mu: 1.1 in the checkpoint, 0.5 now"),
        (["modalities.depth.patch=16"], "modalities.depth.patch: 8 in the checkpoint, 16 now"),
        (["modes.joint.probability=0.4", "modes.i2d.probability=0.4"], "modes.joint.probability: 0.6 in the ch"),
        (["objective.t_floor=0.1"], "objective.t_floor: 0.05 in the checkpoint, 0.1 now"),
        (["init.weights=params"], "init.weights: 'ema' in the checkpoint, 'params' now"),
        ([*QWEN3, "text.max_length=64"], "text.max_length: 512 in the checkpoint, 64 now"),
    ],
    ids=lambda case: case[-1] if isinstance(case, list) else "",
)
def test_what_may_not_change(saved_with, make_tiny_config, changes, line):
    raw = make_tiny_config()
    before = [change for change in changes if change in (*FOLDER, *QWEN3, "optimizer.schedule=cosine")]
    workdir = saved_with(to_dict(resolve(raw, before)))
    with pytest.raises(ValueError, match="is of another config") as found:
        resume.find(workdir, resolve(raw, changes), ProcessGroup())
    assert f"  {line}" in str(found.value)


def test_a_key_that_is_gone_or_new_is_a_change(saved_with, make_tiny_config):
    """A modality or a mode more, on either side."""
    raw, more = make_tiny_config(), make_tiny_config()
    more["modes"]["other"] = dict(probability=0.0, clean=("depth",))
    for saved, now in ((raw, more), (more, raw)):
        with pytest.raises(ValueError, match=r"  modes\.other: .* in the checkpoint, .* now"):
            resume.find(saved_with(to_dict(resolve(saved))), resolve(now), ProcessGroup())


@pytest.fixture
def toy(make_tiny_config, tmp_path, monkeypatch):
    """A config with a modality of a module that leaves a file when it is imported, and that file."""
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    raw = make_tiny_config()
    raw["modalities"]["extra"] = dict(
        kind="toy.trap", position=2, patch=8, prediction="v", noise=dict(kind="logit_normal")
    )
    yield raw, tmp_path / "sprung"
    sys.modules.pop("toy.trap", None)


def test_a_run_goes_on_with_the_module_of_its_own_config(saved_with, toy):
    config = resolve(toy[0])
    assert resume.find(saved_with(to_dict(config)), config, ProcessGroup()) == 3


@pytest.mark.parametrize("kind", ["image", "toy.brightness"])
def test_a_module_that_the_runs_config_does_not_name_is_not_imported(saved_with, toy, kind):
    """Under the name of a modality that the run has too."""
    saved, sprung = toy
    now = {**saved, "modalities": {**saved["modalities"], "extra": {**saved["modalities"]["extra"], "kind": kind}}}
    with pytest.raises(ValueError, match=f"modalities.extra.kind: 'toy.trap' in the checkpoint, '{kind}' now"):
        resume.find(saved_with(saved), resolve(now), ProcessGroup())
    assert not sprung.exists()
