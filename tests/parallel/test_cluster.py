"""Which process this is, by flags and by the environment of a cluster."""

import pytest

from mf_jax.parallel import cluster

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def find(distributed=None, coordinator=None, processes=None, process=None, timeout=None):
    return cluster.find(distributed, coordinator, processes, process, timeout)


def test_without_flags_there_is_one_process():
    assert find() is None


@pytest.mark.parametrize(
    ("coordinator", "host", "port"), [("10.0.0.7:1234", "10.0.0.7", 1234), ("[::1]:80", "::1", 80)]
)
def test_explicit_flags(coordinator, host, port):
    where = find(coordinator=coordinator, processes=4, process=3, timeout=7.5)
    assert where == cluster.ClusterSpec(coordinator, 4, 3, 7.5) and (where.host, where.port) == (host, port)
    assert find(coordinator=coordinator, processes=4, process=3).timeout == 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(distributed="yes"), "--distributed is 'yes'; it can only be auto"),
        (dict(distributed="auto", process=0), "--distributed=auto finds out what --process say"),
        (dict(coordinator="a:1"), "--coordinator without --processes, --process; all three are needed"),
        (dict(processes=2, process=0), "--processes, --process without --coordinator; all three are needed"),
        (dict(timeout=5.0), "--init-timeout is about several processes"),
        (dict(coordinator="a", processes=2, process=0), "--coordinator is 'a'; it must be HOST:PORT"),
        (dict(coordinator=":1", processes=2, process=0), "--coordinator is ':1'; it must be HOST:PORT"),
        (dict(coordinator="a:b", processes=2, process=0), "--coordinator is 'a:b'; it must be HOST:PORT"),
        (dict(coordinator="a:70000", processes=2, process=0), "--coordinator is 'a:70000'; it must be HOST:PORT"),
        (dict(coordinator="a:1", processes=0, process=0), "--processes is 0; it must be at least 1"),
        (dict(coordinator="a:1", processes=2, process=2), "--process is 2; with --processes=2 it must be from 0 to 1"),
        (dict(coordinator="a:1", processes=2, process=-1), "--process is -1; with --processes=2"),
        (dict(coordinator="a:1", processes=2, process=0, timeout=0.0), "--init-timeout is 0; it must be more than 0"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError) as error:
        find(**flags)
    assert message in str(error.value)


def test_auto_under_slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    where = find(distributed="auto", timeout=9.0)
    assert (where.processes, where.process, where.host, where.timeout) == (2, 1, "node003", 9.0)


def test_auto_where_there_is_nothing(monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"--distributed=auto finds neither Cloud TPU nor GKE, Slurm .*--coordinator"):
        find(distributed="auto")


def test_auto_says_why_a_cluster_could_not_be_asked(monkeypatch):
    for name, value in (SLURM | {"SLURM_PROCID": "one"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"--distributed=auto: asking the cluster failed: ValueError.*'one'"):
        find(distributed="auto")


def test_loopback_on_several_hosts(monkeypatch):
    local, named = cluster.ClusterSpec("localhost:1", 2, 1), cluster.ClusterSpec("192.0.2.1:1", 2, 1)
    assert "an address that each host has for itself" in cluster.loopback_hint(local)
    assert cluster.loopback_hint(named) == ""
    cluster.check_loopback(local)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    cluster.check_loopback(named)
    with pytest.raises(ValueError, match="--coordinator is localhost:1, and the job has 2 hosts"):
        cluster.check_loopback(local)
