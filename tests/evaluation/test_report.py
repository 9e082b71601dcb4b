"""results.json, per_image.csv and the table: means per image, skipped images, and what may not be written."""

import csv
import json

import numpy as np
import pytest

from mf_jax.evaluation.protocols import score
from mf_jax.evaluation.report import summarise, table, write_report


def rows():
    rng = np.random.default_rng(0)
    out = []
    for index, share in enumerate((0.9, 0.1, 0.0)):
        gt_HW = rng.uniform(1, 9, (20, 30))
        valid_HW = rng.random((20, 30)) < share
        out.append((f"image, {index}", score(gt_HW * rng.lognormal(0, 0.2 + index, (20, 30)), gt_HW, valid_HW)))
    return out


def test_means_are_per_image_whatever_the_number_of_pixels():
    results = summarise(rows(), checkpoint_step=700, settings={"split": "test"})
    (_, first), (_, second), (_, third) = rows()
    assert third is None
    for protocol in ("moge_affine", "lstsq"):
        for name in ("abs_rel", "delta1", "constant_abs_rel", "constant_delta1"):
            expected = (first[protocol][name] + second[protocol][name]) / 2
            assert results[protocol][name] == pytest.approx(expected)
        assert results[protocol]["images"] == 2
    assert (results["checkpoint_step"], results["skipped_all_missing"], results["split"]) == (700, 1, "test")


def test_files(tmp_path):
    results = write_report(tmp_path / "new" / "folder", rows(), 700, {"steps": 50})
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["per_image.csv", "results.json"]
    assert json.loads((folder / "results.json").read_text()) == results
    with open(folder / "per_image.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["key"] for line in lines] == ["image, 0", "image, 1", "image, 2"]
    assert [line["skipped"] for line in lines] == ["0", "0", "1"]
    assert lines[2]["lstsq/abs_rel"] == ""
    mean = np.mean([float(line["lstsq/abs_rel"]) for line in lines[:2]])
    assert mean == pytest.approx(results["lstsq"]["abs_rel"], rel=1e-12)


def test_a_failed_write_leaves_the_old_report(tmp_path):
    write_report(tmp_path, rows(), 1, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError):
        write_report(tmp_path, rows()[:1], 2, {"loss": float("nan")})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_image_skipped(tmp_path):
    results = write_report(tmp_path, [("a", None), ("b", None)], None, {})
    assert results == {"checkpoint_step": None, "skipped_all_missing": 2}
    assert "2 images without any valid depth were skipped" in table(results)


def test_table_shows_both_beside_the_constant():
    values = {"abs_rel": 0.1234, "constant_abs_rel": 0.4, "delta1": 0.876, "constant_delta1": 0.25, "images": 3}
    text = table({"moge_affine": values, "checkpoint_step": 5, "skipped_all_missing": 0, "source": {"kind": "folder"}})
    line = next(line for line in text.splitlines() if line.startswith("moge_affine"))
    assert line.split() == ["moge_affine", "12.34", "40.00", "87.60", "25.00", "3"]
    assert "source" not in text and "skipped" not in text


def test_what_is_refused():
    with pytest.raises(ValueError, match="nothing was evaluated"):
        summarise([], 0, {})
    with pytest.raises(ValueError, match="may not be called checkpoint_step, lstsq"):
        summarise(rows(), 0, {"lstsq": 1, "checkpoint_step": 2})
    mixed = [rows()[0], ("other", {"lstsq": rows()[1][1]["lstsq"]})]
    with pytest.raises(ValueError, match="other was scored under"):
        summarise(mixed, 0, {})
