"""The loop of queued_resource.sh against a stand-in for gcloud that keeps the state of one resource in a file."""

import pytest

GCLOUD = """
shift 3
case $1 in
  list) cat state 2>/dev/null || true ;;
  create) echo ACTIVE > state; echo 1 >> created ;;
  delete) rm state ;;
  scp) [[ -s state ]] ;;
  ssh)
    if [[ $* == *worker.sh* ]]; then
      n=$(cat trained 2>/dev/null | wc -l); echo 1 >> trained
      BEHAVIOUR
    fi ;;
esac
"""
ARGUMENTS = ("--zone=z", "--type=v5p-16", "--spot", "--", "--config=a", "--workdir=/shared/b")


@pytest.fixture
def run(scripts):
    """Runs `run`; training number n (from 0) behaves as the given shell code says. Returns result and verbs called."""

    def run(behaviour):
        scripts.stand_in("gcloud", GCLOUD.replace("BEHAVIOUR", behaviour).replace("state", f"{scripts.folder}/state"))
        text = (scripts.bin / "gcloud").read_text()
        for name in ("trained", "created"):
            text = text.replace(f" {name}", f" {scripts.folder}/{name}")
        (scripts.bin / "gcloud").write_text(text)
        result = scripts.run("queued_resource.sh", "run", "t2i", *ARGUMENTS)
        verbs = [line.split()[4] for line in scripts.calls if line.startswith("gcloud ")]
        trained = sum("launch/worker.sh" in line for line in scripts.calls)
        return result, verbs, trained

    return run


def test_a_run_that_finishes_is_deleted(run, scripts):
    result, verbs, trained = run("exit 0")
    assert result.returncode == 0, result.stderr
    assert verbs == ["list", "create", "list", "scp", "ssh", "ssh", "delete"] and trained == 1
    assert not (scripts.folder / "state").exists()


@pytest.mark.parametrize("left", ["echo SUSPENDED > state", "rm state"])
def test_preempted_slices_are_created_anew(run, left):
    result, verbs, trained = run(f"if [[ $n -lt 5 ]]; then {left}; exit 255; fi")
    assert result.returncode == 0, result.stderr
    assert trained == 6 and verbs.count("create") == 6
    assert verbs.count("delete") == (6 if "SUSPENDED" in left else 1)


def test_a_preemption_may_show_late(run, scripts):
    scripts.stand_in("sleep", f"echo SUSPENDED > '{scripts.folder}/state'")
    result, verbs, trained = run("[[ $n -ge 5 ]] || exit 255")
    assert result.returncode == 0 and trained == 6 and verbs.count("create") == 6  # none counts as a crash


def test_a_crash_is_tried_again_three_times(run, scripts):
    result, verbs, trained = run("exit 1")
    assert result.returncode == 1 and trained == 4
    assert verbs.count("create") == 1 and "delete" not in verbs
    assert "training ended with status 1; t2i is left" in result.stderr
    assert (scripts.folder / "state").read_text() == "ACTIVE\n"


@pytest.mark.parametrize("status", [2, 143])
def test_a_mistake_and_a_stop_are_not_tried_again(run, status):
    result, verbs, trained = run(f"exit {status}")
    assert result.returncode == status and trained == 1 and "delete" not in verbs


def test_a_failed_request_ends_it(run, scripts):
    (scripts.folder / "state").write_text("FAILED\n")
    result, verbs, trained = run("exit 0")
    assert result.returncode == 1 and trained == 0 and "create" not in verbs
    assert "the request failed" in result.stderr
