"""The directory of a run, shared by its hosts."""

import multiprocessing
import threading
import time

import pytest

from mf_jax.parallel.processes import Crew
from mf_jax.training import workdir
from mf_jax.training.workdir import held


@pytest.fixture
def pair():
    here, there = multiprocessing.Pipe()
    crews = Crew(0, {1: (here, "host1")}), Crew(1, {0: (there, "host0")})
    yield crews
    for crew in crews:
        crew.finish()
    time.sleep(0.05)


def hold(path, crew, found):
    try:
        with held(path, crew):
            found[crew.process] = "held"
    except ValueError as error:
        found[crew.process] = str(error)


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
    monkeypatch.setattr(workdir, "PATIENCE", 0.2)
    with held(tmp_path / "local", Crew()):
        pass
    found = both(pair, [tmp_path / "shared", tmp_path / "local"])
    assert found[0] == "held"
    assert f"workdir {tmp_path / 'local'} of process 1 on " in found[1] and "all hosts must share it" in found[1]


def test_a_run_that_is_refused_leaves_the_word_of_the_one_that_holds_it(tmp_path):
    with held(tmp_path, Crew()):
        word = (tmp_path / "lock").read_text()
        with pytest.raises(ValueError, match="is in use by another run"), held(tmp_path, Crew()):
            pass
        assert (tmp_path / "lock").read_text() == word != ""
