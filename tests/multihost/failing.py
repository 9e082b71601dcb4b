"""Two processes of which one fails, or both: python failing.py {one,all} and the flags of the place."""

import argparse
import time

import jax

from mf_jax.__main__ import _explain
from mf_jax.metrics import NotFinite
from mf_jax.parallel import distributed, place

parser = argparse.ArgumentParser()
parser.add_argument("who")
parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int)
parser.add_argument("--process", type=int)
given = parser.parse_args()

where = place.find(None, given.coordinator, given.processes, given.process, None)
with distributed.joined(where, {}, _explain):
    assert jax.process_count() == 2
    if given.who == "all":
        raise NotFinite("loss is nan")
    if given.process == 1:
        raise ValueError("only here")
    time.sleep(600)  # in the place of a collective that process 1 never comes to
