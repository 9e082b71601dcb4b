"""What the package says of itself: the locks beside the ranges, the citation, the hooks, the marker of annotations."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

REPOSITORY = pathlib.Path(__file__).parent.parent
LOCKS = {"requirements.lock": (), "requirements-test.lock": ("test",)}  # file: extras
PLATFORM = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}
PLATFORM |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def _name(requirement):
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def _pins(lock):
    """[(pinned requirement, its hashes)] of the text of a lock file."""
    pins = []
    for line in lock.replace("\\\n", " ").splitlines():
        if line.strip() and not line.strip().startswith("#"):
            requirement, *hashes = line.split("--hash=")
            pins.append((Requirement(requirement.strip()), [h.strip() for h in hashes]))
    return pins


def _lock_problems(requirements, lock):
    """What is missing, out of range, not exact or without hashes; whatever the marker of the pin."""
    pins, found = _pins(lock), []
    for pin, hashes in pins:
        if [s.operator for s in pin.specifier] != ["=="]:
            found.append(f"{pin} is not exact")
        if not hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes):
            found.append(f"{pin} has no SHA-256 hashes")
    for wanted in requirements:
        if wanted.marker and not wanted.marker.evaluate(PLATFORM):
            continue
        same = [pin for pin, _ in pins if _name(pin) == _name(wanted)]
        if not any(pin.marker is None or pin.marker.evaluate(PLATFORM) for pin in same):
            found.append(f"{wanted} is not pinned for Python 3.11 on Linux x86_64")
        for pin in same:
            if not wanted.specifier.contains(next(iter(pin.specifier)).version):
                found.append(f"{pin} is out of the range of {wanted}")
    return found


def _requirements(project, *extras):
    lines = [line.partition("#")[0] for line in (REPOSITORY / "requirements.txt").read_text().splitlines()]
    for extra in extras:
        lines += project["project"]["optional-dependencies"][extra]
    return [Requirement(line) for line in lines if line.strip()]


@pytest.mark.parametrize("file, extras", LOCKS.items())
def test_the_locks_pin_the_requirements_with_hashes(file, extras, project):
    requirements = _requirements(project, *extras)
    assert len(requirements) > 15
    assert _lock_problems(requirements, (REPOSITORY / file).read_text()) == []


def test_the_locks_pin_the_same_versions():
    """Whatever their markers: a package that one needs on Windows alone the other may need everywhere."""
    base, tested = ({f"{pin.name}{pin.specifier}" for pin, _ in _pins((REPOSITORY / f).read_text())} for f in LOCKS)
    assert base <= tested


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "lock, problem",
    [
        (f"numpy==2.4.0 \\\n    {HASH}\n    # via mf-jax", None),
        (f"other==2.4.0 {HASH}", "numpy<3,>=2.0 is not pinned for Python 3.11 on Linux x86_64"),
        (
            f"numpy==2.4.0 ; python_full_version >= '3.12' {HASH}",
            "numpy<3,>=2.0 is not pinned for Python 3.11 on Linux x86_64",
        ),
        (f"numpy==3.1 {HASH}", "numpy==3.1 is out of the range of numpy<3,>=2.0"),
        (f"numpy>=2.1 {HASH}", "numpy>=2.1 is not exact"),
        ("numpy==2.4.0", "numpy==2.4.0 has no SHA-256 hashes"),
        ("numpy==2.4.0 --hash=md5:00", "numpy==2.4.0 has no SHA-256 hashes"),
    ],
)
def test_what_is_wrong_with_a_lock_is_found(lock, problem):
    assert _lock_problems([Requirement("numpy>=2.0,<3")], lock) == ([problem] if problem else [])


def test_the_citation_is_of_this_version(project):
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert str(citation["version"]) == project["project"]["version"]
    assert citation["license"] == project["project"]["license"]
    assert citation["authors"][0]["name"].lower() == project["project"]["authors"][0]["name"]
    assert citation["references"][0]["url"] == project["project"]["urls"]["Paper"]


def test_the_image_has_the_files_that_the_package_is_made_of(project):
    """launch/Dockerfile installs the package from what it has copied by then."""
    before = (REPOSITORY / "launch/Dockerfile").read_text().partition("pip install")[0]
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", before, re.MULTILINE) for name in line.split()}
    named = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "mf_jax"}
    assert named | set(project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]) <= copied


def test_annotations_are_packaged(project):
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["mf_jax"]
    assert (REPOSITORY / "mf_jax/py.typed").is_file()


def test_the_hooks_are_the_lint_of_make(tmp_path):
    """Each calls the installed ruff, and finds what it is there for."""
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: hook["entry"].split() for repo in config["repos"] for hook in repo["hooks"]}
    assert all(hook["language"] == "system" for repo in config["repos"] for hook in repo["hooks"])
    bad = tmp_path / "bad.py"
    bad.write_text("import os\nx = {  'a':1 }\n")

    def run(hook, file):
        program, *arguments = hooks[hook]
        assert program == "ruff"
        command = [sys.executable, "-m", program, *arguments, f"--config={REPOSITORY / 'pyproject.toml'}", str(file)]
        return subprocess.run(command, capture_output=True, cwd=REPOSITORY).returncode

    assert run("ruff-check", REPOSITORY / "mf_jax/__init__.py") == 0
    assert run("ruff-check", bad) == 1
    assert run("ruff-format", bad) == 0
    assert bad.read_text() == 'import os\n\nx = {"a": 1}\n'
