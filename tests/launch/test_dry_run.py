"""What each script would run, and what it says to mistakes; shellcheck on all of them."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
TRAIN = ("--config=configs/t2i_3b.py", "--workdir=/shared/runs/a b", "--config.train.steps=9")
TRAIN_COMMAND = "-m mf_jax train --config=configs/t2i_3b.py"
QUEUED = ("t2i", "--zone=us-east5-a")
XPK = ("--cluster=c", "--name=t2i", "--type=v5p-128", "--slices=2", "--image=gcr.io/p/i:1")
GKE = ("--name=t2i", "--topology=v5p:4x4x4", "--slices=2", "--image=gcr.io/p/i:1", "--claim=shared")
SLURM = ("--nodes=4", "--gpus-per-node=8", "--partition=big")
LOCAL = ("--processes=2", "--devices=4", "--platform=cpu")


def test_worker(scripts):
    result = scripts.run("worker.sh", "--dry-run", "tpu", *TRAIN)
    assert result.returncode == 0 and not scripts.calls
    assert result.stdout.splitlines()[-1] == (
        rf"python {TRAIN_COMMAND} --workdir=/shared/runs/a\ b --config.train.steps=9 --distributed=auto "
    )


def test_node(scripts):
    result = scripts.run("node.sh", "--dry-run", "gpu", *TRAIN)
    assert result.returncode == 0 and not scripts.calls
    assert f"python {TRAIN_COMMAND} " in result.stdout and "--distributed" not in result.stdout
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in result.stdout


def test_slurm(scripts):
    result = scripts.run("slurm.sh", *SLURM, "--dry-run", "--", *TRAIN)
    assert result.returncode == 0 and not scripts.calls
    submit, _, heading, *job = result.stdout.splitlines()
    for option in ("--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=1", "--requeue", "--partition=big"):
        assert f" {option} " in submit
    assert "--signal=B:TERM@" in submit and " launch/slurm.sh --in-job 8 --config=" in submit
    assert heading == "# in the job, 4 processes:"
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in job
    assert any(line.startswith("XLA_FLAGS='--xla_gpu_enable_latency_hiding_scheduler=true") for line in job)
    assert job[-1].startswith("srun --kill-on-bad-exit=1 ") and TRAIN_COMMAND in job[-1]
    assert job[-1].endswith("--distributed=auto ")


def test_xpk(scripts):
    result = scripts.run("xpk.sh", *XPK, "--zone=us-east5-a", "--dry-run", "--", *TRAIN)
    assert result.returncode == 0 and not scripts.calls
    line = result.stdout.splitlines()[0]
    assert line.startswith("xpk workload create --cluster=c --workload=t2i --tpu-type=v5p-128 --num-slices=2 ")
    assert "--max-restarts=20 " in line and " --zone=us-east5-a " in line
    train = " ".join(TRAIN).replace("a b", r"a\ b")
    assert line.endswith(f"--command='exec bash launch/worker.sh tpu {train}' ")
    assert f"python {TRAIN_COMMAND}" in result.stdout.splitlines()[-1]


def test_xpk_is_called_as_the_dry_run_says(scripts):
    shown = scripts.run("xpk.sh", *XPK, "--dry-run", "--", *TRAIN).stdout.splitlines()[0]
    assert scripts.run("xpk.sh", *XPK, "--", *TRAIN).returncode == 0
    assert scripts.calls == [shown.replace("'", "").strip()]


def test_sbatch_is_called_as_the_dry_run_says(scripts):
    shown = scripts.run("slurm.sh", *SLURM, "--dry-run", "--", "--config=a", "--workdir=b").stdout.splitlines()[0]
    assert scripts.run("slurm.sh", *SLURM, "--", "--config=a", "--workdir=b").returncode == 0
    assert scripts.calls == [shown.strip()]


def test_queued_resource(scripts):
    options = (*QUEUED, "--type=v5p-128", "--slices=2", "--spot", "--nfs=10.0.0.2:/share", "--dry-run")
    result = scripts.run("queued_resource.sh", "run", *options, "--", *TRAIN)
    assert result.returncode == 0 and not scripts.calls
    create, wait, archive, copy, install, train, delete = result.stdout.splitlines()
    gcloud = "gcloud compute tpus queued-resources"
    assert create.startswith(f"{gcloud} create t2i --zone=us-east5-a --accelerator-type=v5p-128 ")
    assert "--runtime-version=v2-alpha-tpuv5 --node-count=2 --node-prefix=t2i --spot" in create
    assert wait == "# waits until t2i is ACTIVE"
    assert archive.startswith("git archive ") and copy.startswith(f"{gcloud} scp /tmp/mf_jax.")
    for line in (copy, install, train):
        assert "--node=all --worker=all --batch-size=all" in line
    assert "[tpu]" in install and "mount -t nfs 10.0.0.2:/share /shared" in install
    assert r"bash launch/worker.sh tpu --config=configs/t2i_3b.py --workdir=/shared/runs/a\ b" in train
    assert delete == f"{gcloud} delete t2i --zone=us-east5-a --force --quiet "


def test_queued_resource_of_one_slice(scripts):
    result = scripts.run("queued_resource.sh", "create", *QUEUED, "--type=v6e-16", "--dry-run")
    assert "--runtime-version=v2-alpha-tpuv6e --node-id=t2i " in result.stdout
    assert "--spot" not in result.stdout and "--node-count" not in result.stdout


def test_local(scripts):
    result = scripts.run("local.py", *LOCAL, "--dry-run", "--", *TRAIN)
    assert result.returncode == 0 and not scripts.calls
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    ports = set()
    for i, line in enumerate(lines):
        assert line.startswith("JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 ")
        assert f"{sys.executable} {TRAIN_COMMAND}" in line and "/launch/xla_flags.sh cpu" in line
        found = re.search(r"--coordinator=localhost:(\d+) --processes=2 --process=(\d+)$", line)
        assert int(found[2]) == i
        ports.add(found[1])
    assert len(ports) == 1


def test_local_splits_the_gpus(scripts):
    arguments = ("local.py", "--processes=2", "--devices=2", "--platform=gpu", "--dry-run", "--", *TRAIN)
    lines = scripts.run(*arguments, CUDA_VISIBLE_DEVICES="7,5,3,1").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["CUDA_VISIBLE_DEVICES=7,5", "CUDA_VISIBLE_DEVICES=3,1"]
    assert all("/launch/xla_flags.sh gpu" in line for line in lines)
    lines = scripts.run(*arguments).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["worker.sh"], "the platform is ''; give tpu, gpu or cpu"),
        (["worker.sh", "tpus", *TRAIN], "the platform is 'tpus'"),
        (["worker.sh", "tpu", "--config=a"], "train needs --config=FILE and --workdir=DIR"),
        (["node.sh", "--dry-run", *TRAIN], "the platform is '--config=configs/t2i_3b.py'"),
        (["node.sh", "gpu", "--workdir=a"], "train needs --config=FILE and --workdir=DIR"),
        (["slurm.sh", "--gpus-per-node=8", "--", *TRAIN], "--nodes is ''; give the number of nodes"),
        (["slurm.sh", "--nodes=4", "--", *TRAIN], "--gpus-per-node is ''"),
        (["slurm.sh", "--nodes=none", "--gpus-per-node=8", "--", *TRAIN], "--nodes is 'none'"),
        (["slurm.sh", "--nodes", "4", "--gpus-per-node=8", "--", *TRAIN], "'4' is not an option"),
        (["slurm.sh", *SLURM, *TRAIN], "write them after --"),
        (["slurm.sh", *SLURM, "--", "--config=a"], "train needs --config=FILE and --workdir=DIR"),
        (["xpk.sh", "--cluster=c", "--", *TRAIN], "needs --cluster=CLUSTER, --name=NAME and --image=IMAGE"),
        (["xpk.sh", *XPK, "--type=h100-8", "--", *TRAIN], "--type is 'h100-8'; give v5litepod-N, v5p-N or v6e-N"),
        (["xpk.sh", *XPK, "--slices=0", "--", *TRAIN], "--slices is '0'"),
        (["xpk.sh", *XPK], "train needs --config=FILE and --workdir=DIR"),
        (["queued_resource.sh"], "the verb is ''; give run, create, install, train, stop or delete"),
        (["queued_resource.sh", "start", *QUEUED], "the verb is 'start'"),
        (["queued_resource.sh", "run", "--zone=z"], "the name is '--zone=z'"),
        (["queued_resource.sh", "delete", "t2i"], "needs --zone=ZONE"),
        (["queued_resource.sh", "create", *QUEUED], "--type is ''; give v5litepod-N, v5p-N or v6e-N"),
        (["queued_resource.sh", "create", *QUEUED, "--type=v6e-8", "--slice=2"], "there is no option '--slice=2'"),
        (["queued_resource.sh", "run", *QUEUED, "--type=v6e-8"], "train needs --config=FILE and --workdir=DIR"),
        (["local.py", "--processes=0", "--platform=cpu", "--", *TRAIN], "--processes is 0; give 1 or more"),
        (["local.py", *LOCAL, "--devices=0", "--", *TRAIN], "--devices is 0; give 1 or more"),
        (["local.py", *LOCAL, "--", "--config=a"], "train needs --config=FILE and --workdir=DIR"),
        (["local.py", *LOCAL, "--platform=tpu", "--", *TRAIN], "invalid choice: 'tpu'"),
        (["gke.py", *GKE, "--topology=v4:2x2x1", "--", *TRAIN], "of the generations v5e, v5p, v6e"),
        (["gke.py", *GKE], "train needs --config=FILE and --workdir=DIR"),
    ],
)
def test_mistakes_are_one_clear_line(scripts, command, message):
    result = scripts.run(*command)
    assert result.returncode == 2 and not scripts.calls
    assert message in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_local_wants_enough_gpus(scripts):
    arguments = ("--processes=2", "--devices=2", "--platform=gpu", "--", *TRAIN)
    result = scripts.run("local.py", *arguments, CUDA_VISIBLE_DEVICES="0,1,2")
    assert result.returncode == 2 and "need 4 GPUs; CUDA_VISIBLE_DEVICES is 0,1,2" in result.stderr


def test_shellcheck():
    paths = sorted(LAUNCH.glob("*.sh"))
    assert len(paths) >= 5
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([shellcheck, "-x", *paths], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_dockerfile_copies_what_is_there_and_installs_extras_that_exist():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"mf_jax", "configs", "launch"} <= set(copied)
    assert all((LAUNCH.parent / name).exists() for name in copied)
    extras = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"tpu", "cuda"} <= set(extras) and "ARG EXTRA=tpu" in lines
