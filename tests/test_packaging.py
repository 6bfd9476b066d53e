"""What is published: sdist and wheel, their metadata, and what lies beside them."""

from __future__ import annotations

import email.parser
import re
import tarfile
import zipfile
from pathlib import Path

import fastuiat

ROOT = Path(__file__).parents[1]
PACKAGES = {"fastuiat": ROOT, "fastuiat_kernels": ROOT / "kernels"}
"""Each by the folder that it lies in."""


def shipped_files() -> set[str]:
    """Every file of the packages, as a wheel names it."""
    return {
        path.relative_to(base).as_posix()
        for package, base in PACKAGES.items()
        for path in (base / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_has_every_file_and_says_what_it_is(distributions):
    with zipfile.ZipFile(distributions.wheel) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.parser.Parser().parsestr(wheel.read(metadata).decode())
    info = metadata.removesuffix("METADATA")
    assert {name for name in names if not name.startswith(info)} == shipped_files()
    tables = {f"fastuiat/bench/{name}.toml" for name in ("rates", "links", "paper_tables")}
    assert names >= tables | {f"{package}/py.typed" for package in PACKAGES}
    assert f"{info}licenses/LICENSE" in names
    assert said["Name"] == "fastuiat" and said["Version"] == fastuiat.__version__
    assert said["License-Expression"] == "MIT" and said["Author"] == "the fastuiat authors"
    assert said["Requires-Python"] == ">=3.10"


def test_the_sdist_is_what_the_wheel_is_made_of(distributions):
    with tarfile.open(distributions.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= {"pyproject.toml", "README.md", "LICENSE"}
    kernels = {f"kernels/{n}" for n in shipped_files() if n.startswith("fastuiat_kernels/")}
    assert names >= kernels | {n for n in shipped_files() if n.startswith("fastuiat/")}


def test_the_unpacked_wheel_runs_in_a_process_of_its_own(distributions, tmp_path):
    code = (
        "import fastuiat, fastuiat_kernels as k; print(fastuiat.__version__)\n"
        "print(fastuiat.__file__); print(k.__file__)\n"
        "print(fastuiat.build_model('wrn-10-1').training)\n"
    )
    version, *files, training = distributions.run("-c", code, cwd=tmp_path).split()
    assert version == fastuiat.__version__ and training == "True"
    assert all(Path(file).is_relative_to(distributions.unpacked) for file in files)
    said = distributions.run("-m", "fastuiat", "bench", "table2", "--help", cwd=tmp_path)
    assert "--archs" in said and not list(tmp_path.iterdir())


def test_the_version_has_one_home():
    """Nothing but the package itself states it; the changelog has a heading for it."""
    for name in ("pyproject.toml", "CITATION.cff"):
        stated = re.search(
            r"""^version\s*[:=]\s*["']?\d""", (ROOT / name).read_text(), re.MULTILINE
        )
        assert stated is None, name
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(fastuiat.__version__)}\] ", changes, re.MULTILINE)


def test_pre_commit_runs_what_make_check_runs():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    lines = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE) == lines
    assert hooks.count("language: system") == len(lines) and hooks.count("repo:") == 1
