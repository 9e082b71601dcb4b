"""Where the time goes, by a clock that the tests turn: every second once, and restarts added up."""

import json
import random

import pytest

from mf_jax.monitoring.goodput import CHECKPOINT, COMPILE, DATA, LOST, MEANING, STARTUP, STEP, Goodput


def seconds(goodput):
    shares = goodput.shares()
    return {kind: shares[f"goodput/{kind}"] * shares["wall_seconds"] for kind in MEANING}


def expect(goodput, **expected):
    assert seconds(goodput) == pytest.approx(dict.fromkeys(MEANING, 0.0) | expected)


@pytest.fixture
def goodput(tmp_path):
    """Started at 100, ready to step at 130."""
    goodput = Goodput(tmp_path / "goodput.json", began=100.0)
    goodput.spend(STARTUP, 110.0)
    goodput.spend(COMPILE, 130.0)
    return goodput


def test_starting_is_split_and_the_rest_is_steps(goodput):
    goodput.step(1, 133.0, [])
    goodput.step(2, 134.0, [])
    expect(goodput, startup=10, compile=20, step=4)
    assert goodput.shares()["wall_seconds"] == 34
    assert goodput.shares()["goodput/step"] == 4 / 34


def test_only_waiting_with_an_idle_device_counts(goodput):
    goodput.step(1, 140.0, [])
    goodput.step(2, 150.0, [(DATA, 131.0, 139.0)])  # over before step 1 was done
    expect(goodput, startup=10, compile=20, step=20)
    goodput.step(3, 160.0, [(DATA, 141.0, 153.0)])  # 9 of its 12 s while step 2 was computed
    expect(goodput, startup=10, compile=20, step=27, data_wait=3)
    goodput.step(4, 175.0, [(CHECKPOINT, 161.0, 164.0), (DATA, 164.5, 166.5)])  # idle throughout
    expect(goodput, startup=10, compile=20, step=37, data_wait=5, checkpoint=3)


def test_the_last_checkpoint_counts(goodput):
    goodput.step(1, 131.0, [])
    goodput.spend(CHECKPOINT, 135.0)
    expect(goodput, startup=10, compile=20, step=1, checkpoint=4)


def test_shares_sum_to_one_whatever_happens(tmp_path):
    draw = random.Random(0)
    now = 50.0
    for start in range(0, 60, 15):  # each start goes back five steps
        goodput = Goodput(tmp_path / "goodput.json", began=now)
        first = now
        before = goodput.shares().get("wall_seconds", 0.0)
        for kind in (STARTUP, COMPILE):
            now += draw.uniform(0, 9)
            goodput.spend(kind, now)
        for step in range(start, start + 20):
            spans = []
            for kind in draw.sample([DATA, CHECKPOINT], draw.randint(0, 2)):
                begin = max([now - 3, *(end for _, _, end in spans)])
                spans.append((kind, begin, begin + draw.uniform(0, 5)))
            now = max([now, *(end for _, _, end in spans)]) + draw.uniform(0, 2)
            goodput.step(step + 1, now, spans)
        shares = goodput.shares()
        wall = shares.pop("wall_seconds")
        assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
        assert min(shares.values()) >= 0
        assert wall == pytest.approx(before + now - first)
        goodput.save()
    assert all(share > 0 for share in shares.values())


def test_steps_done_again_are_lost_and_all_starts_add_up(tmp_path, goodput):
    for step in range(1, 8):
        goodput.step(step, 130.0 + step, [])
    goodput.save()
    goodput.step(8, 138.0, [])  # killed before this is written
    again = Goodput(tmp_path / "goodput.json", began=20.0)  # another boot, another clock; the checkpoint was of step 4
    again.spend(STARTUP, 25.0)
    again.step(5, 27.0, [])
    again.step(6, 29.0, [(DATA, 27.5, 28.0), (CHECKPOINT, 28.0, 28.5)])
    again.step(7, 31.0, [])
    expect(again, startup=15, compile=20, step=7, lost=6)
    again.step(8, 33.0, [])
    again.step(9, 35.0, [])
    expect(again, startup=15, compile=20, step=11, lost=6)
    again.save()
    third = Goodput(tmp_path / "goodput.json", began=0.0)
    third.step(9, 1.0, [])
    expect(third, startup=15, compile=20, step=11, lost=7)
    third.step(10, 2.0, [])
    expect(third, startup=15, compile=20, step=12, lost=7)
    assert "in 3 starts" in third.table()


def test_a_start_that_ends_before_its_first_new_step_forgets_nothing(tmp_path, goodput):
    goodput.step(1, 131.0, [])
    goodput.step(2, 132.0, [])
    goodput.save()
    second = Goodput(tmp_path / "goodput.json", began=0.0)
    second.step(1, 1.0, [])
    second.save()
    third = Goodput(tmp_path / "goodput.json", began=0.0)
    third.step(2, 5.0, [])
    expect(third, startup=10, compile=20, step=2, lost=6)


def test_table_has_a_line_per_kind_with_share_and_seconds(goodput):
    goodput.step(1, 140.0, [])
    lines = goodput.table().splitlines()
    assert lines[0] == "where 40 s in 1 start went:"
    assert [line.split()[3] for line in lines[1:]] == [STEP, DATA, CHECKPOINT, COMPILE, STARTUP, LOST]
    assert lines[1].split()[:3] == ["25.0%", "10.0", "s"]


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": {}, "starts": 1, "reached": 2}', '{"starts": 1}'])
def test_a_file_that_is_not_ours_is_an_error_that_says_what_to_do(tmp_path, text):
    path = tmp_path / "goodput.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"goodput\.json cannot be read .*; remove it"):
        Goodput(path, 0.0)


def test_accounts_are_written_as_plain_json(tmp_path, goodput):
    goodput.step(3, 133.0, [])
    goodput.save()
    saved = json.loads((tmp_path / "goodput.json").read_text())
    assert saved["starts"] == 1 and saved["reached"] == 3
    assert saved["seconds"] == {STEP: 3.0, DATA: 0.0, CHECKPOINT: 0.0, COMPILE: 20.0, STARTUP: 10.0, LOST: 0.0}
