"""Two processes agree on the sizes of every step's text, and train what one device does without packing."""

import re

import pytest


@pytest.fixture(scope="module")
def config_file(make_frozen_config, frames, tmp_path_factory):
    raw = make_frozen_config(frames)
    raw["modalities"]["image"] = dict(
        kind="image", position=0, patch=8, prediction="x", noise=dict(kind="logit_normal")
    )
    raw["train"] |= dict(steps=5, batch=8)
    raw["optimizer"] = dict(learning_rate=0.01, warmup=0)  # after two steps the text matters
    raw["data"] |= dict(workers=1)
    path = tmp_path_factory.mktemp("config") / "frozen.py"
    path.write_text(f"def get_config():\n    return {raw!r}\n")
    return path


@pytest.fixture(scope="module")
def run(start, config_file):
    def train(workdir, *overrides, **arguments):
        command = ["-m", "mf_jax", "train", f"--config={config_file}", f"--workdir={workdir}"]
        return start([*command, *(f"--config.{override}" for override in overrides)], **arguments).wait()

    return train


def test_shapes_differ_between_steps_and_losses_are_those_of_one_device(run, losses, tmp_path):
    """Each process has two of the four devices, and of each batch other captions, hence needs of its own."""
    dump = "train.compilation_cache=" + str(tmp_path / "cache")
    run(tmp_path / "two", "mesh.fsdp=4", "text.lengths=(8,16)", dump, devices=2)
    run(tmp_path / "one", "text.pack=False", processes=1, devices=1)
    got, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert list(got) == list(expected) == [1, 2, 3, 4, 5]
    for step, values in got.items():
        for name, value in values.items():
            assert value == pytest.approx(expected[step][name], rel=1e-4), (step, name)
    programs = {path.name for path in (tmp_path / "cache").iterdir() if re.match(r"jit_train_step-.*-cache", path.name)}
    assert len(programs) >= 2
