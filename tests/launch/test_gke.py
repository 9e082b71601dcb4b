"""The JobSet manifest against the schemas of Kubernetes and JobSet; hosts and chips of each topology.

The template of the job is checked with Kubernetes' own schema of a Job, nothing unknown allowed. What JobSet adds has
its schema here, of the fields that we use. Not checked: what only a cluster can (admission webhooks, whether a topology
is to be had, image and claim), and that GKE sets the TPU variables that jax reads.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
TRAIN = ["--config=configs/t2i_3b.py", "--workdir=/shared/runs/t2i_3b", '--config.note=it\'s 1: {a} "b"']


def _load():
    spec = importlib.util.spec_from_file_location("launch_gke", LAUNCH / "gke.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


gke = _load()


def _closed(required, **properties):
    return dict(type="object", additionalProperties=False, required=required, properties=properties)


# v1alpha2 as JobSet 0.8 defines it, in its CRD jobsets.jobset.x-k8s.io, cut down to the fields used here
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
JOBSET = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion=dict(const="jobset.x-k8s.io/v1alpha2"),
    kind=dict(const="JobSet"),
    metadata=_closed(
        ["name"],
        name=dict(type="string", pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$"),
        annotations=dict(type="object", additionalProperties=dict(type="string")),
    ),
    spec=_closed(
        ["failurePolicy", "replicatedJobs"],
        failurePolicy=_closed(
            ["maxRestarts"],
            maxRestarts=dict(type="integer", minimum=0),
            rules=dict(
                type="array",
                items=_closed(
                    ["action", "name"],
                    name=dict(type="string", pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
                    action=dict(enum=ACTIONS),
                    onJobFailureReasons=dict(type="array", items=dict(type="string")),
                ),
            ),
        ),
        replicatedJobs=dict(
            type="array",
            items=_closed(
                ["name", "template"],
                name=dict(type="string", pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$"),
                replicas=dict(type="integer", minimum=1),
                template=dict(type="object"),
            ),
        ),
    ),
)


def _rendered(**changed):
    given = dict(name="t2i", topology="v5p:4x4x4", slices=2, image="gcr.io/p/i:1", claim="shared", train=TRAIN)
    return yaml.safe_load(gke.render(**(given | changed)))


def _check(manifest):
    jsonschema.validate(manifest, JOBSET)
    for job in manifest["spec"]["replicatedJobs"]:
        template = dict(apiVersion="batch/v1", kind="Job", metadata=dict(name=job["name"])) | job["template"]
        kubernetes_validate.validate(template, "1.35", strict=True)


@pytest.mark.parametrize("spot", [False, True])
def test_manifest_is_what_kubernetes_and_jobset_take(spot):
    _check(_rendered(spot=spot))


def test_the_check_finds_faults():
    for fault in ("parallelisms", "backoffLimit"):
        manifest = _rendered()
        manifest["spec"]["replicatedJobs"][0]["template"]["spec"][fault] = "0"
        with pytest.raises(jsonschema.ValidationError):
            _check(manifest)
    manifest = _rendered()
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError):
        _check(manifest)


@pytest.mark.parametrize(
    ("topology", "slices", "accelerator", "hosts", "chips"),
    [
        ("v5e:1x1", 1, "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x2", 1, "tpu-v5-lite-podslice", 1, 4),
        ("v5e:16x16", 4, "tpu-v5-lite-podslice", 64, 4),
        ("v5p:2x2x1", 1, "tpu-v5p-slice", 1, 4),
        ("v5p:4x4x4", 2, "tpu-v5p-slice", 16, 4),
        ("v5p:16x16x24", 1, "tpu-v5p-slice", 1536, 4),
        ("v6e:2x4", 2, "tpu-v6e-slice", 2, 4),
        ("v6e:8x16", 3, "tpu-v6e-slice", 32, 4),
    ],
)
def test_manifest_asks_for_the_slices(topology, slices, accelerator, hosts, chips):
    manifest = _rendered(topology=topology, slices=slices)
    _check(manifest)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] == ["bash", "launch/worker.sh", "tpu", *TRAIN]


def test_manifest_restarts_all_slices_but_not_after_a_mistake():
    manifest = _rendered(restarts=7)
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = spec["podFailurePolicy"]["rules"]
    (container,) = spec["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_spot_nodes_are_selected_and_tolerated():
    pod = _rendered(spot=True)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(topology="v5p"), "write the topology as in v5e:4x4"),
        (dict(topology="v5e:4x4x4"), "of v5e there are 1x1, 2x2"),
        (dict(topology="v6e:3x3"), "of v6e there are 1x1, 2x2"),
        (dict(topology="v5p:8x4x4"), "three multiples of 4 in ascending order"),
        (dict(topology="v5p:4x4"), "of v5p there are 2x2x1"),
        (dict(topology="v5p:4x4x28"), "up to 16x16x24"),
        (dict(topology="v5p:0x4x4"), "of v5p there are"),
        (dict(slices=0), "--slices is 0"),
        (dict(topology="v5e:2x2"), "give 1 or more, and 1 where a slice is a single host"),
        (dict(restarts=-1), "--restarts is -1"),
        (dict(name="T2I"), "--name is 'T2I'"),
        (dict(claim="a_b"), "--claim is 'a_b'"),
        (dict(train=TRAIN[:1]), "train needs --config=FILE and --workdir=DIR"),
        (dict(train=[TRAIN[0], "--workdir=runs/a"]), "--workdir is runs/a; it must outlive a pod"),
    ],
)
def test_mistakes(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _rendered(**changed)


def test_dry_run_prints_the_manifest_and_else_kubectl_gets_it(scripts):
    arguments = ["--name=t2i", "--topology=v6e:4x4", "--image=i", "--claim=c", "--", *TRAIN]
    printed = scripts.run("gke.py", "--dry-run", *arguments)
    assert printed.returncode == 0 and not scripts.calls
    _check(yaml.safe_load(printed.stdout))
    scripts.stand_in("kubectl", "cat; exit 7")
    created = scripts.run("gke.py", *arguments)
    assert created.returncode == 7 and scripts.calls == ["kubectl create --filename=-"]
    assert created.stdout == printed.stdout


def test_hosts_are_those_of_libtpu():
    """libtpu knows the hosts of a topology by itself."""
    pytest.importorskip("libtpu")
    code = "import sys\nfrom jax.experimental import topologies\nfor name in sys.argv[1:]:\n"
    code += "    devices = topologies.get_topology_desc(name, 'tpu').devices\n"
    code += "    print(name, len({d.process_index for d in devices}), len(devices))"
    names = ["v5e:2x4", "v5e:16x16", "v6e:8x8", "v5p:2x2x1", "v5p:4x4x4", "v5p:8x8x8"]
    command = [sys.executable, "-c", code, *names]
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # else one process of the machine at a time
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    for name, hosts, chips in zip(shown[::3], shown[1::3], shown[2::3], strict=True):
        shape = gke.parse_slice(name)
        assert (shape.hosts, shape.hosts * shape.chips_per_host) == (int(hosts), int(chips)), name
