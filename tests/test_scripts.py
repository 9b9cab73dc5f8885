"""scripts/ and .ci/run, in copies of the tree: they set up all by themselves, once, and say what a machine lacks.

Most tests use a miniature project: the real scripts around a package that builds in a moment and needs no
network. It records each build and each tool that is run.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SCRIPTS = [
    "scripts/setup",
    "scripts/demo",
    "scripts/test",
    "scripts/kill-sweep",
    ".ci/run",
    "scripts/bootsector",
]
TOOLS = ["ruff", "mypy", "pytest"]
PATIENCE_SECONDS = 300  # making a venv takes seconds, on a busy host many

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "miniature"
version = "1"
[project.optional-dependencies]
dev = []
"""
BACKEND = '''\
"""Builds an editable wheel by hand: a .pth file that names the tree."""
import os, pathlib, zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    with open("builds.log", "a") as log:
        log.write("built\\n")
    if os.path.exists("break-the-build"):
        raise RuntimeError("the compiler said no")
    pathlib.Path("bus/native/_core.abi3.so").touch()
    name = "miniature-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("miniature.pth", os.getcwd())
        info = "miniature-1.dist-info/"
        metadata = "Metadata-Version: 2.1\\nName: miniature\\nVersion: 1\\nProvides-Extra: dev\\n"
        wheel.writestr(info + "METADATA", metadata)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
'''
TOOL = '''\
"""Stands in for a tool: records its arguments and what it sees, and fails if it is told to."""
import json, os, pathlib, sys, tempfile
seen = {"argv": sys.argv[1:], "stdin": sys.stdin.read(), "CI": os.environ.get("CI")}
tempfile.mkstemp()  # a sloppy tool
with open(pathlib.Path(__file__).with_name("tools.log"), "a") as log:
    log.write(json.dumps([pathlib.Path(__file__).stem, seen]) + "\\n")
sys.exit(pathlib.Path(__file__).with_name("fail-" + pathlib.Path(__file__).stem).exists())
'''
DEMO = """\
import os, sys
print("demo", os.getcwd(), sys.argv[1:])
"""


def miniature(folder: Path) -> Path:
    tree = folder / "the tree"  # a path with a blank must do
    for script in SCRIPTS:
        (tree / script).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / script, tree / script)
    (tree / "bus" / "native").mkdir(parents=True)
    (tree / "bus" / "native" / "ring.c").write_text("int ring;\n")
    (tree / "pyproject.toml").write_text(PYPROJECT)
    (tree / "backend.py").write_text(BACKEND)
    for tool in TOOLS:
        (tree / f"{tool}.py").write_text(TOOL)
    (tree / "partitions").mkdir()
    (tree / "runtime").mkdir()
    (tree / "runtime" / "__init__.py").touch()
    (tree / "runtime" / "demo.py").write_text(DEMO)
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A miniature project, as cloned."""
    return miniature(tmp_path)


@pytest.fixture(scope="module")
def tree_made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = miniature(tmp_path_factory.mktemp("ready"))
    done = run(tree, "scripts/setup", "dev")
    assert done.returncode == 0, done.stderr
    return tree


@pytest.fixture
def ready(tree_made_once: Path) -> Path:
    """A miniature project that is set up; nothing else is recorded yet."""
    for path in [
        *tree_made_once.glob("*.log"),
        *tree_made_once.glob("fail-*"),
        *tree_made_once.glob("break-*"),
    ]:
        path.unlink()
    done = run(tree_made_once, "scripts/setup", "dev")
    assert done.returncode == 0, done.stderr
    (tree_made_once / "builds.log").unlink(missing_ok=True)
    return tree_made_once


def run(
    tree: Path, script: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CI"))
    }
    return subprocess.run(
        [tree / script, *arguments],
        cwd=cwd or tree.parent,
        env={**clean, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        input="typed by nobody",
    )


def builds(tree: Path) -> int:
    log = tree / "builds.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def files_of(folder: Path, *, but: Sequence[str] = ()) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not any(str(path.relative_to(folder)).startswith(prefix) for prefix in but)
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_shellcheck_has_nothing_to_say(script: str) -> None:
    assert os.access(PROJECT / script, os.X_OK)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    checked = subprocess.run(["shellcheck", script], cwd=PROJECT, capture_output=True, text=True)
    assert checked.stdout == ""


def test_only_what_could_change_the_result_makes_it_build_again(ready: Path) -> None:
    again = run(ready, "scripts/setup")
    assert (again.returncode, again.stdout, again.stderr, builds(ready)) == (0, "", "", 0)
    for change in (
        lambda: (ready / "bus" / "native" / "ring.h").write_text("extern int ring2;\n"),
        lambda: (ready / "bus" / "native" / "_core.abi3.so").unlink(),
    ):
        before = builds(ready)
        change()
        changed = run(ready, "scripts/setup", "dev")
        assert (changed.returncode, builds(ready)) == (0, before + 1), changed.stderr
    assert run(ready, "scripts/setup", "dev").stderr == ""


@pytest.mark.soak
def test_set_up_happens_once_for_each_change(tree: Path) -> None:
    """The same from a clone on, with all that counts. It makes two environments, which takes half a minute."""
    first = run(tree, "scripts/setup")
    assert (first.returncode, builds(tree)) == (0, 1), first.stderr
    assert "making .venv" in first.stderr

    again = run(tree, "scripts/setup")
    assert (again.returncode, again.stdout, again.stderr, builds(tree)) == (0, "", "", 1)

    assert run(tree, "scripts/setup", "dev").returncode == 0  # more is asked for
    assert builds(tree) == 2
    for profile in ("dev", "run"):  # less is not
        assert run(tree, "scripts/setup", profile).returncode == 0
    assert builds(tree) == 2

    for change in (
        lambda: (tree / "bus" / "native" / "ring.c").write_text("int ring2;\n"),
        lambda: (tree / "bus" / "native" / "ring.h").write_text("extern int ring2;\n"),
        lambda: (tree / "pyproject.toml").write_text(PYPROJECT + "# changed\n"),
        lambda: (tree / "bus" / "native" / "_core.abi3.so").unlink(),
        lambda: (tree / ".venv" / "bin" / "python").unlink(),
    ):
        before = builds(tree)
        change()
        changed = run(tree, "scripts/setup", "dev")
        assert (changed.returncode, builds(tree)) == (0, before + 1), changed.stderr
        assert run(tree, "scripts/setup", "dev").stderr == ""

    moved = tree.rename(tree.with_name("elsewhere"))
    before = builds(moved)
    assert run(moved, "scripts/setup", "dev").returncode == 0
    assert builds(moved) == before + 1


def test_a_set_up_that_failed_is_not_taken_for_done(ready: Path) -> None:
    (ready / "bus" / "native" / "ring.c").write_text("changed\n")
    (ready / "break-the-build").touch()
    for _ in range(2):
        failed = run(ready, "scripts/setup")
        assert failed.returncode == 1
        assert "the compiler said no" in failed.stderr
        assert "the reason is above" in failed.stderr
    (ready / "break-the-build").unlink()
    assert run(ready, "scripts/setup").returncode == 0
    assert builds(ready) == 3


def test_two_set_ups_at_once_are_one(ready: Path) -> None:
    (ready / "bus" / "native" / "ring.c").write_text("changed again\n")
    command = f'"{ready}/scripts/setup" & one=$!; "{ready}/scripts/setup" & wait $one && wait $!'
    both = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (both.returncode, builds(ready)) == (0, 1), both.stderr


# -- what a machine may lack


THIS_PYTHON = f'exec {sys.executable} "$@"'


def bare_machine(
    folder: Path, *, without: Sequence[str] = (), python: str = THIS_PYTHON, cc: str = "exit 0"
) -> str:
    """A PATH on which only what every Linux has is found, and stand-ins for what is being tested."""
    tools = [
        "bash",
        "sh",
        "env",
        "dirname",
        "find",
        "sort",
        "xargs",
        "sha256sum",
        "cut",
        "id",
        "uname",
        "cat",
        "cp",
        "rm",
    ]
    folder.mkdir()
    for tool in tools:
        (folder / tool).symlink_to(str(shutil.which(tool)))
    stand_ins = {"apt-get": "exit 99", "apt-cache": "exit 99", "cc": cc, "python3": python}
    for name, body in stand_ins.items():
        if name not in without:
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
    return str(folder)


NO_VENV = f"""case "$*" in *ensurepip*) exit 1;; *_base_executable*) echo "$0"; exit;; esac; {THIS_PYTHON}"""
OLD_PYTHON = """case "$*" in *version_info*) exit 1;; esac; echo Python 3.9.2"""
APT_HAS_3_12 = '[ "$2" = python3.12 ]'
BASE = "apt-get install -y gcc libc6-dev"


@pytest.mark.parametrize(
    ("machine", "lacks", "command"),
    [
        ({"without": ["cc"]}, "a C compiler", f"{BASE} python3-dev python3-venv"),
        ({"cc": "exit 1"}, "the headers of Python or of the C library", f"{BASE} python3-dev python3-venv"),
        ({"python": NO_VENV}, "Python's venv module", f"{BASE} python3-dev python3-venv"),
        (
            {"without": ["python3", "cc"]},
            "Python 3.11 or newer, a C compiler",
            f"{BASE} python3 python3-dev python3-venv",
        ),
    ],
)
def test_what_lacks_is_named_with_the_one_command_that_installs_it(
    tree: Path, tmp_path: Path, machine: dict[str, str], lacks: str, command: str
) -> None:
    path = bare_machine(tmp_path / "bin", **machine)
    done = run(tree, "scripts/setup", PATH=path, PYTHON="")
    assert done.returncode == 1
    assert f"this machine lacks {lacks}. Install it with:" in done.stderr
    sudo = "" if os.geteuid() == 0 else "sudo "
    assert f"setup:     {sudo}{command}\n" in done.stderr
    assert not (tree / ".venv").exists()


def test_a_python_that_is_too_old_gets_a_newer_one_beside_it(tree: Path, tmp_path: Path) -> None:
    path = bare_machine(tmp_path / "bin", python=OLD_PYTHON)
    apt_cache = Path(path) / "apt-cache"
    apt_cache.write_text(f"#!/bin/sh\n{APT_HAS_3_12}\n")
    done = run(tree, "scripts/setup", PATH=path, PYTHON="")
    assert "lacks Python 3.11 or newer" in done.stderr
    assert f"{BASE} python3.12 python3.12-dev python3.12-venv\n" in done.stderr


def test_a_user_who_is_not_root_is_told_to_use_sudo(tree: Path, tmp_path: Path) -> None:
    path = bare_machine(tmp_path / "bin", without=["cc"])
    for uid, sudo in ((0, ""), (1000, "sudo ")):
        identity = Path(path) / "id"
        identity.unlink()
        identity.write_text(f"#!/bin/sh\necho {uid}\n")
        identity.chmod(0o755)
        done = run(tree, "scripts/setup", PATH=path, PYTHON="")
        assert f"setup:     {sudo}apt-get install" in done.stderr


def test_a_python_that_was_asked_for_and_won_t_do_is_refused(tree: Path) -> None:
    done = run(tree, "scripts/setup", PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python 3.11 or newer" in done.stderr


# -- what calls it


def test_the_demo_gets_its_arguments_in_the_caller_s_folder(ready: Path, tmp_path: Path) -> None:
    """A folder named runtime at the caller's is not taken for ours."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "runtime").mkdir(parents=True)
    (elsewhere / "runtime" / "__init__.py").write_text("raise SystemExit('the wrong runtime')\n")
    done = run(ready, "scripts/demo", "a file", cwd=elsewhere)
    assert (done.returncode, done.stdout) == (0, f"demo {elsewhere} ['a file']\n"), done.stderr


def test_every_check_runs_even_if_one_fails(ready: Path) -> None:
    passed = run(ready, "scripts/test", "-k", "some thing")
    assert passed.returncode == 0, passed.stderr
    log = (ready / "tools.log").read_text()
    assert sorted(line.split('"')[1] for line in log.splitlines()) == ["mypy", "pytest", "ruff", "ruff"]
    pytest_line = next(line for line in log.splitlines() if line.split('"')[1] == "pytest")
    several, *others = json.loads(pytest_line)[1]["argv"][1:]
    assert 2 <= int(several) <= 8
    assert others == ["--dist", "worksteal", "-k", "some thing"], "the caller's come last, so that they win"
    for tool in TOOLS:
        (ready / "tools.log").unlink()
        (ready / f"fail-{tool}").touch()
        failed = run(ready, "scripts/test")
        assert failed.returncode == 1
        assert f"test: failed: {tool}" in failed.stderr
        assert len((ready / "tools.log").read_text().splitlines()) == 4
        (ready / f"fail-{tool}").unlink()


def test_ci_has_no_stdin_reports_failure_and_leaves_nothing(ready: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    kept = [".venv", "tools.log"]
    before = files_of(ready, but=kept)
    done = run(ready, ".ci/run", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    (ready / "fail-pytest").touch()
    assert run(ready, ".ci/run", TMPDIR=str(temporary)).returncode == 1
    (ready / "fail-pytest").unlink()
    assert files_of(ready, but=kept) == before
    assert list(temporary.iterdir()) == []
    for line in (ready / "tools.log").read_text().splitlines():
        assert '"stdin": "", "CI": "true"' in line


@pytest.mark.soak
def test_the_real_project_sets_itself_up_from_nothing(tmp_path: Path) -> None:
    """A copy of the tree as a clone would be, the network, and the system's own Python: a minute."""
    ignore = shutil.ignore_patterns(".venv", ".git", "build", "*.so", "*.egg-info", ".*_cache", "__pycache__")
    tree = Path(shutil.copytree(PROJECT, tmp_path / "clone", ignore=ignore))
    environment = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "HOME", "SSL"))}
    for _ in range(2):
        done = subprocess.run(
            [tree / "scripts" / "setup"],
            env={**environment, "PATH": "/usr/local/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    valid = subprocess.run(
        [tree / ".venv/bin/partvisor", "validate", tree / "configs/quickstart.toml"], cwd=tmp_path
    )
    assert valid.returncode == 0
