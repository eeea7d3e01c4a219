"""The wheel holds the library alone, and the library works where nothing else of ours is."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import launch

ROOT = Path(__file__).parent.parent


CORE = {"jax", "numpy", "optax"}

ALONE = """
import importlib.util, sys
import rps_jax
assert rps_jax.__file__.startswith(sys.argv[1]), rps_jax.__file__
for absent in ("models", "data", "launch", "flax", "orbax", "numba", "tyro", "matplotlib"):
    assert importlib.util.find_spec(absent) is None, absent
"""


def link_with_dependencies(names, site):
    """Links the installed distributions, and all that they require, into the folder `site`."""
    pending, seen = list(names), set()
    while pending:
        name = canonicalize_name(pending.pop())
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        pending += [r.name for r in map(Requirement, distribution.requires or ()) if required(r)]
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))


def required(requirement):
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


@pytest.mark.long
def test_the_wheel_holds_the_library_alone(tmp_path):
    # Built from a copy, so that no build folder is left in the checkout.
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rps_jax"}
    assert "rps_jax/py.typed" in names

    site = tmp_path / "site"
    (metadata,) = site.glob("*.dist-info")
    requirements = map(Requirement, importlib.metadata.Distribution.at(metadata).requires)
    assert {requirement.name for requirement in requirements if required(requirement)} == CORE

    # Nothing can be imported but the wheel and what it requires: -I and -S keep all else away.
    link_with_dependencies(CORE, site)
    readme = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert readme
    code = "\n".join([f"import sys; sys.path.insert(0, {str(site)!r})", ALONE, *readme])
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(site)],
        check=True, cwd=tmp_path, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_a_command_without_its_extra_says_so_in_one_line():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['tyro'] = None\n"
        "import launch.theory"
    )
    command = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert command.returncode == 2
    assert command.stderr == 'error: tyro not installed: pip install -e ".[launch]"\n'


def test_the_packet_simulation_without_its_extra_says_which():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['numba'] = None\n"
        "import rps_jax.colocation"
    )
    command = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    said = "ImportError: rps_jax.colocation needs numba, found none: pip install numba, or"
    assert command.stderr.splitlines()[-1].startswith(said)


def test_a_missing_extra_is_found_by_all_that_it_brings():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    brought = {
        canonicalize_name(Requirement(text).name)
        for text in extras["launch"] + extras["colocation"]
    }
    of_import = importlib.metadata.packages_distributions()
    looked_for = {canonicalize_name(of_import[name][0]) for name in launch._REQUIRED}
    # This one is imported by tensorflow-datasets alone.
    assert looked_for == brought - {"rps-jax", "importlib-resources"}
