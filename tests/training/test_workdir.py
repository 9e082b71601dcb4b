"""The directory of a run, shared by its hosts."""

import multiprocessing
import threading
import time

import pytest

from mf_jax.parallel.processes import ProcessGroup
from mf_jax.training import workdir
from mf_jax.training.workdir import locked


@pytest.fixture
def pair():
    here, there = multiprocessing.Pipe()
    groups = ProcessGroup(0, {1: (here, "host1")}), ProcessGroup(1, {0: (there, "host0")})
    yield groups
    for group in groups:
        group.finish()
    time.sleep(0.05)


def hold(path, group, found):
    try:
        with locked(path, group):
            found[group.process] = "held"
    except ValueError as error:
        found[group.process] = str(error)


def both(pair, paths):
    found = {}
    threads = [threading.Thread(target=hold, args=(p, c, found)) for p, c in zip(paths, pair, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_hosts_that_share_it(pair, tmp_path):
    assert both(pair, [tmp_path / "run", tmp_path / "run"]) == {0: "held", 1: "held"}


def test_hosts_that_do_not(pair, tmp_path, monkeypatch):
    """Not even where another run has left a lock of its own."""
    monkeypatch.setattr(workdir, "VISIBLE_WITHIN", 0.2)
    with locked(tmp_path / "local", ProcessGroup()):
        pass
    found = both(pair, [tmp_path / "shared", tmp_path / "local"])
    assert found[0] == "held"
    assert f"workdir {tmp_path / 'local'} of process 1 on " in found[1] and "all hosts must share it" in found[1]


def test_a_run_that_is_refused_leaves_the_word_of_the_one_that_holds_it(tmp_path):
    with locked(tmp_path, ProcessGroup()):
        word = (tmp_path / "lock").read_text()
        with pytest.raises(ValueError, match="is in use by another run"), locked(tmp_path, ProcessGroup()):
            pass
        assert (tmp_path / "lock").read_text() == word != ""
