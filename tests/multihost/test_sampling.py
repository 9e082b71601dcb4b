"""Two processes with four devices each evaluate and sample as one process with eight, or with one, does."""

import csv
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

SETTINGS = ["evaluate.steps=2", "evaluate.ensemble=3", "evaluate.batch=5"]  # 12 predictions in batches of 8 or 5


@pytest.fixture(scope="module")
def verb(start):
    """A function (name, checkpoint, arguments ..., **as start) -> outputs of each process."""

    def run(name, checkpoint, *arguments, expected=0, **settings):
        return start(["-m", "mf_jax", name, f"--checkpoint={checkpoint}", *arguments], **settings).wait(expected)

    return run


def test_an_evaluation_is_that_of_one_process_and_of_one_device(two, verb, tmp_path):
    """The same text where the devices hold the same rows, the same numbers on another mesh."""
    overrides = [f"--config.{setting}" for setting in SETTINGS]
    outputs = verb("evaluate", two, f"--output={tmp_path / 'two'}", *overrides)
    assert "moge_affine" in outputs[0] and str(tmp_path) in outputs[0]
    assert "moge_affine" not in outputs[1]
    verb("evaluate", two, f"--output={tmp_path / 'one'}", *overrides, processes=1, devices=8)
    verb("evaluate", two, f"--output={tmp_path / 'single'}", *overrides, processes=1, devices=1)
    for name in ("results.json", "per_image.csv", "contact_sheet.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    results, single = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "single"))
    assert results["moge_affine"]["images"] == single["moge_affine"]["images"] == 4
    rows, expected = (
        list(csv.reader((tmp_path / name / "per_image.csv").read_text().splitlines())) for name in ("two", "single")
    )
    assert rows[0] == expected[0] and [row[0] for row in rows] == [row[0] for row in expected] and len(rows) == 5
    np.testing.assert_allclose(np.float64([r[1:] for r in rows[1:]]), np.float64([r[1:] for r in expected[1:]]), 1e-3)


def test_each_reads_its_share_of_the_images(two, start, tmp_path):
    """16 in batches of 8; process 0 also reads those of the contact sheet, the first eight."""
    script = pathlib.Path(__file__).with_name("evaluating.py")
    outputs = start([str(script), str(two), str(tmp_path)]).wait()
    read = [json.loads(re.search(r"^found (.*)$", output, re.MULTILINE)[1]) for output in outputs]
    assert sorted(read[1]) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert sorted(read[0]) == [*range(8), 8, 9, 10, 11]
    assert len((tmp_path / "per_image.csv").read_text().splitlines()) == 17


def test_samples_are_those_of_one_process(two, verb, tmp_path):
    """Written by process 0 alone."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    common = [f"--image={tmp_path / 'in.png'}", "--steps=2", "--batch=3", "--seed=5"]
    depths = {}
    for name, settings in (("two", {}), ("one", dict(processes=1, devices=1))):
        outputs = verb("sample", two, *common, f"--output-dir={tmp_path / name}", **settings)
        folders = [line for line in outputs[0].splitlines() if line.startswith(str(tmp_path))]
        assert len(folders) == 3 == len(list((tmp_path / name).iterdir()))
        assert all(str(tmp_path) not in output for output in outputs[1:])
        depths[name] = [np.load(pathlib.Path(folder) / "depth_raw.npy") for folder in folders]
    np.testing.assert_allclose(depths["two"], depths["one"], rtol=1e-3)
    assert not np.allclose(depths["two"][0], depths["two"][1])


def test_a_failure_of_one_ends_all_with_its_message(two, start, tmp_path):
    script = pathlib.Path(__file__).with_name("evaluating.py")
    outputs = start([str(script), str(two), str(tmp_path), "fail"]).wait(1)
    assert "mf_jax evaluate: error: the disk of process 1" in outputs[1]
    assert "mf_jax evaluate: process 1 ended the run: error: the disk of process 1" in outputs[0]
    assert "Traceback" not in "".join(outputs)
    assert not list(tmp_path.iterdir())


def test_commands_that_differ_do_not_start(two, verb, tmp_path):
    outputs = verb("sample", two, "--steps=1", each=[["--seed=1"], ["--seed=2"]], expected=2)
    for output in outputs:
        assert "has --seed 2, process 0 1; all processes need the same command" in output
