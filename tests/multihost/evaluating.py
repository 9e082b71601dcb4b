"""What a process of an evaluation reads: prints one JSON object per process.

Arguments: flags of the place, then WORKDIR OUTPUT, and FAIL, with which process 1 fails at its first record.
"""

import argparse
import json
import sys

from mf_jax.__main__ import _explain
from mf_jax.data.procedural.source import ProceduralSource
from mf_jax.evaluation.evaluate import evaluate
from mf_jax.parallel import cluster, distributed

parser = argparse.ArgumentParser()
parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int)
parser.add_argument("--process", type=int)
parser.add_argument("workdir")
parser.add_argument("output")
parser.add_argument("fail", nargs="?")
given = parser.parse_args(sys.argv[1:])

read = []
original = ProceduralSource.__getitem__


def recorded(self, index):
    if given.fail and given.process == 1:
        raise OSError("the disk of process 1")
    read.append(int(index))
    return original(self, index)


ProceduralSource.__getitem__ = recorded
where = cluster.find(None, given.coordinator, given.processes, given.process, None)
with distributed.joined(where, {}, _explain, "evaluate") as group:
    settings = ["evaluate.steps=1", "evaluate.batch=8", "data.source.test=16"]
    evaluate(given.workdir, None, settings, given.output, group=group)
print(f"found {json.dumps(read)}")
