"""One strict JAX for all tests: a CPU mesh of eight devices, no silent rank promotion."""

import os
import signal
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from xdist.scheduler import LoadFileScheduling

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

OLDER_GENERATOR = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11, 1):  # XLA ends the process on a flag that it does not know.
    OLDER_GENERATOR += " --xla_cpu_use_fusion_emitters=false"
# Files whose tests start several JAX processes at once: they run one after the other.
SEVERAL_PROCESSES = {
    "test_bed.py",
    "test_bed_transport.py",
    "test_clusters.py",
    "test_faults.py",
    "test_hosts.py",
    "test_processes.py",
    "test_ssh.py",
    "test_wire.py",
}
# Files whose tests compile the packet simulation: the first does it for all.
OF_SIMULATION = {"test_colocate.py", "test_colocation.py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that are marked long")


def pytest_configure(config: pytest.Config) -> None:
    """Lets Ctrl-C count, and has XLA's older code generator compile, in two thirds of the time."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # As in the background of a shell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # Processes side by side inherit the environment.
        os.environ["XLA_FLAGS"] = f"{OLDER_GENERATOR} {os.environ.get('XLA_FLAGS', '')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the long tests, unless they are asked for; those of several processes go first."""
    if not config.getoption("long"):
        config.hook.pytest_deselected(items=[x for x in items if x.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    items.sort(key=lambda item: item.path.name not in SEVERAL_PROCESSES)


class FilesSideBySide(LoadFileScheduling):
    """A file runs on one core, and shares what it compiles; several processes starve each other."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if Path(file).name in SEVERAL_PROCESSES:
            return "several processes"
        return "simulation" if Path(file).name in OF_SIMULATION else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesSideBySide:
    return FilesSideBySide(config, log)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiles fast rather than well, and once, here and in the processes that tests start."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_traceback_in_locations_limit": 0,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    compilation_cache.reset_cache()  # What the import of a test compiles has opened another.
