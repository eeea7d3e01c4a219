"""Who may import whom: the library nobody, models and data each other neither, launch all."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("rps_jax", "models", "data", "launch")
ALLOWED = {
    "rps_jax": {"rps_jax"},
    "models": {"models"},
    "data": {"data"},
    "launch": set(PACKAGES),
}
# The library is what ships in the wheel: these are all that it may need.
LIBRARY_NEEDS = {"jax", "optax", "numpy"}
# The case study needs more, and is therefore imported by nothing else of the library.
COLOCATION_NEEDS = {"numba", "numpy"}


def imported(path):
    """The top-level packages that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_its_layer_allows(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = set(imported(path)) & set(PACKAGES)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


def test_the_library_needs_jax_optax_and_numpy_alone():
    for path in (ROOT / "rps_jax").rglob("*.py"):
        colocation = "colocation" in path.relative_to(ROOT).parts
        allowed = COLOCATION_NEEDS if colocation else LIBRARY_NEEDS
        others = set(imported(path)) - sys.stdlib_module_names - {"rps_jax"}
        assert others <= allowed, f"{path} imports {others - allowed}"
        assert colocation or "colocation" not in path.read_text()
