"""What a reader installs: the same ranges everywhere, and a wheel that holds what it needs."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import pytest

import minisd

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()
SHIPPED = resources.files("minisd").joinpath("picturebook/weights/pipeline.json").is_file()


def test_requirements_and_pyproject_name_the_same_ranges():
    assert REQUIREMENTS[: len(PROJECT["dependencies"])] == PROJECT["dependencies"]


def test_requirements_add_jupyter_and_pytest_and_end_with_minisd_itself():
    names = [line.split(">")[0] for line in REQUIREMENTS[len(PROJECT["dependencies"]) :]]
    assert names == ["jupyter", "pytest", "-e ."]


def test_every_range_has_both_ends():
    assert all(">=" in line and ",<" in line for line in REQUIREMENTS[:-1])


def test_the_version_is_said_once():
    assert minisd.__version__ == PROJECT["version"]


def test_the_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    setuptools = importlib.metadata.version("setuptools")
    if int(setuptools.split(".")[0]) < 77:  # the first to know `license = "Apache-2.0"`
        pytest.skip(f"building without a network needs setuptools 77 or later, not {setuptools}")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("minisd", "weights_convert"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source)
    return next(built.glob("*.whl"))


def pip(*argv):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def run_there(installed, code):
    """Run code in a Python that sees the installed wheel before this repository."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); {code}"
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=installed)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_source_file_and_the_type_markers(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("minisd", "weights_convert"):
        sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / package).rglob("*.py")}
        assert sources <= names
        assert f"{package}/py.typed" in names


def test_the_wheel_has_the_console_script_and_the_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "minisd = minisd.__main__:main" in archive.read(entry).decode()
    assert any(name.endswith("LICENSE") for name in archive.namelist())


def test_the_wheel_runs_from_where_it_is_installed(installed):
    out = run_there(
        installed, "from minisd import __main__ as m; print(m.__file__); m.main(['--words'])"
    )
    assert out.startswith(str(installed))
    assert "objects:" in out


@pytest.mark.skipif(not SHIPPED, reason="the shipped weights are not there yet")
def test_the_shipped_model_is_found_in_the_installed_wheel(installed):
    out = run_there(
        installed,
        "import minisd, json; pipe = minisd.StableDiffusionPipeline.from_pretrained(); "
        "print(json.dumps([minisd.__file__, pipe.family, pipe.hash]))",
    )
    file, family, model = json.loads(out)
    about = resources.files("minisd").joinpath("picturebook/weights/pipeline.json").read_text()
    assert file.startswith(str(installed))
    assert (family, model) == ("picture-book", json.loads(about)["hash"])
