"""Two processes that find the same NaN at the same step: python failing.py and the flags of the place."""

import argparse

import jax

from mf_jax.__main__ import _explain
from mf_jax.monitoring.metrics import check_finite
from mf_jax.parallel import cluster, distributed

parser = argparse.ArgumentParser()
parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int)
parser.add_argument("--process", type=int)
given = parser.parse_args()

with distributed.joined(cluster.find(None, given.coordinator, given.processes, given.process, None), {}, _explain):
    assert jax.process_count() == 2
    check_finite(7, {"loss": float("nan"), "sum": {"depth": 0.0}})
