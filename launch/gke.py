r"""TPU slices on GKE as a JobSet: renders the manifest and submits it with kubectl. Needs nothing but Python.

    python launch/gke.py --name=t2i-3b --topology=v5p:4x4x4 --slices=2 --image=IMAGE --claim=shared -- \
        --config=configs/t2i_3b.py --workdir=/shared/runs/t2i_3b

--dry-run prints the manifest. The cluster needs JobSet 0.6 or later and, per slice, a multi-host node pool of the
topology. IMAGE is launch/Dockerfile, built and pushed. The claim is a PersistentVolumeClaim that many nodes may write
(ReadWriteMany), such as Filestore; it is mounted at /shared.

When a host is preempted, evicted or crashes, all slices start again and go on from the latest checkpoint; after a
mistake in the command (status 2) they do not. Follow it and end it with

    kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=t2i-3b,batch.kubernetes.io/job-completion-index=0
    kubectl delete jobset t2i-3b
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence

CHIPS_PER_HOST = 4  # of every slice that has more than one host, and of the largest with one
GRIDS = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_TORI = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
GKE_NAMES = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}

MANIFEST = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # a slice is one node pool
spec:
  failurePolicy:
    maxRestarts: {restarts}  # of all slices, each time any host fails
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: {slices}
    template:
      spec:
        completionMode: Indexed
        parallelism: {hosts}
        completions: {hosts}
        backoffLimit: 0  # the failure of a host is the failure of its slice, which the JobSet answers
        podFailurePolicy:
          rules:
          - action: FailJob  # a mistake in the command
            onExitCodes: {{containerName: train, operator: In, values: [2]}}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300  # to save; on spot nodes GKE grants about 15 seconds whatever is here
            hostNetwork: true  # the fast way between slices
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {accelerator}
              cloud.google.com/gke-tpu-topology: {topology}
{spot}\
            containers:
            - name: train
              image: {image}
              command: {command}
              securityContext: {{privileged: true}}  # to lock memory for transfers to the TPU
              resources:
                limits: {{google.com/tpu: {chips}}}
              volumeMounts:
              - {{name: memory, mountPath: /dev/shm}}
              - {{name: shared, mountPath: /shared}}
            volumes:
            - name: memory  # data workers pass batches through it; a container's own has 64 MiB
              emptyDir: {{medium: Memory}}
            - name: shared
              persistentVolumeClaim: {{claimName: {claim}}}
"""

SPOT = """\
              cloud.google.com/gke-spot: "true"
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
"""


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: GKE's name of its accelerator and of its topology, its hosts, and the chips of each host."""

    accelerator: str
    topology: str
    hosts: int
    chips_per_host: int


def parse_slice(text: str) -> Slice:
    """The Slice of a text such as v5p:4x4x4.

    v5e and v6e in 2x4 are two hosts of four chips; GKE's single machines of eight chips are not used.

    Raises:
      ValueError: a generation or topology that GKE does not offer.
    """
    generation, _, topology = text.partition(":")
    if generation not in GKE_NAMES:
        raise ValueError(
            f"--topology is {text!r}; write GENERATION:TOPOLOGY, of the generations {', '.join(GKE_NAMES)}"
        )
    if not re.fullmatch(r"\d+(x\d+)+", topology):
        raise ValueError(f"--topology is {text!r}; write the topology as in v5e:4x4 or v5p:4x4x4")
    sides = tuple(int(side) for side in topology.split("x"))
    if generation != "v5p":
        offered = sides in GRIDS
        choice = ", ".join("x".join(map(str, grid)) for grid in GRIDS)
    else:
        ascending = len(sides) == 3 and sides == tuple(sorted(sides)) and all(s and s % 4 == 0 for s in sides)
        offered = sides in SMALL_TORI or (
            ascending and all(s <= limit for s, limit in zip(sides, (16, 16, 24), strict=True))
        )
        small = ", ".join("x".join(map(str, torus)) for torus in SMALL_TORI)
        choice = f"{small}, or three multiples of 4 in ascending order, up to 16x16x24"
    if not offered:
        raise ValueError(f"--topology is {text!r}; of {generation} there are {choice}")
    chips = math.prod(sides)
    hosts = max(1, chips // CHIPS_PER_HOST)
    return Slice(GKE_NAMES[generation], topology, hosts, chips // hosts)


def render(
    name: str,
    topology: str,
    slices: int,
    image: str,
    claim: str,
    train: Sequence[str],
    spot: bool = False,
    restarts: int = 20,
) -> str:
    """The manifest, as YAML.

    Args:
      topology: as `parse_slice` reads it. claim: mounted at /shared. train: arguments of the verb `train`.

    Raises:
      ValueError: invalid arguments.
    """
    shape = parse_slice(topology)
    for option, value in (("--name", name), ("--claim", claim)):
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", value) or len(value) > 40:
            raise ValueError(f"{option} is {value!r}; use at most 40 of a-z, 0-9 and -, a letter first, no - last")
    if slices < 1 or (slices > 1 and shape.hosts == 1):
        raise ValueError(f"--slices is {slices} with {topology}; give 1 or more, and 1 where a slice is a single host")
    if restarts < 0:
        raise ValueError(f"--restarts is {restarts}; give 0 or more")
    given = dict(argument.split("=", 1) for argument in train if "=" in argument)
    if "--config" not in given or "--workdir" not in given:
        raise ValueError("train needs --config=FILE and --workdir=DIR; write them after --")
    if not given["--workdir"].startswith("/shared/") and "://" not in given["--workdir"]:
        raise ValueError(f"--workdir is {given['--workdir']}; it must outlive a pod: give a directory under /shared/")
    return MANIFEST.format(
        name=name,
        restarts=restarts,
        slices=slices,
        hosts=shape.hosts,
        accelerator=shape.accelerator,
        topology=shape.topology,
        chips=shape.chips_per_host,
        spot=SPOT if spot else "",
        image=json.dumps(image),
        command=json.dumps(["bash", "launch/worker.sh", "tpu", *train]),
        claim=claim,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns kubectl's exit status; 2 after a mistake in the arguments."""
    parser = argparse.ArgumentParser(
        prog="launch/gke.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="of the JobSet; a new one for each run")
    parser.add_argument("--topology", required=True, metavar="GENERATION:TOPOLOGY", help="of a slice: v5p:4x4x4")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--image", required=True)
    parser.add_argument("--claim", required=True, help="PersistentVolumeClaim to mount at /shared")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    parser.add_argument("--restarts", type=int, default=20, help="at most so many (default: 20)")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest")
    parser.add_argument("train", nargs="*", metavar="-- ARGUMENT", help="arguments of train")
    arguments = vars(parser.parse_args(argv))
    dry_run = arguments.pop("dry_run")
    try:
        manifest = render(**arguments)
    except ValueError as error:
        print(f"gke.py: {error}", file=sys.stderr)
        return 2
    if dry_run:
        print(manifest, end="")
        return 0
    return subprocess.run(["kubectl", "create", "--filename=-"], input=manifest, text=True).returncode


if __name__ == "__main__":
    sys.exit(main())
