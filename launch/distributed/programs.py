"""Compiled programs, kept for the runs to come.

JAX keeps them in `jax_compilation_cache_dir`, but writes none of the processes beyond the first of
a job, and files those of CPUs by the process, so that they cannot use what the first has written.
"""

import contextlib
import hashlib
import os
import pickle
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jax
from jax.experimental import serialize_executable

_PROCESSOR = Path("/proc/cpuinfo")


def keep_programs(folder: Path) -> None:
    """Keeps compiled programs for the runs to come, unless JAX has been told where to keep them.

    Args:
        folder: Where; need not exist.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_or_find(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Compiles a program, or finds it where an earlier run has kept it, in each process of a job.

    Args:
        lowered: The program.
        mesh: The devices that it runs on, those of all processes.

    Returns:
        The program. JAX compiles it where its own cache serves this process, where nothing is to be
        kept, and if it calls the host.
    """
    devices = tuple(mesh.devices.flat)
    path = _path(lowered, devices)
    if path is None:
        return lowered.compile()
    # A file that is not there, or whatever XLA and pickle make of a damaged one.
    with contextlib.suppress(Exception):
        return serialize_executable.deserialize_and_load(
            path.read_bytes(),
            lowered.in_tree,
            lowered.out_tree,
            execution_devices=devices,
        )
    compiled = lowered.compile()
    # Not every program can be kept, nor everywhere; it is compiled, and that is what was asked for.
    with contextlib.suppress(ValueError, NotImplementedError, pickle.PicklingError, OSError):
        program, *_ = serialize_executable.serialize(compiled)
        _write(path, program)
    return compiled


def _path(lowered: jax.stages.Lowered, devices: Sequence[jax.Device]) -> Path | None:
    """Returns the file of a program; None where JAX keeps it, or nobody is to."""
    settings = jax.config.values
    folder = settings["jax_compilation_cache_dir"]
    wanted = folder and settings["jax_enable_compilation_cache"]
    served = jax.process_index() == 0 or jax.default_backend() != "cpu"
    if not wanted or served or not _PROCESSOR.exists():
        return None
    text = lowered.as_text()
    if "_callback" in text:  # It calls this very process.
        return None
    described = ("model name", "flags", "Features")
    processor = (x for x in _PROCESSOR.read_text().splitlines() if x.startswith(described))
    # All that the compilation depends on.
    about = (
        text,
        sorted(settings.items()),
        os.environ.get("XLA_FLAGS", ""),
        version("jax"),
        version("jaxlib"),
        sorted(set(processor)),
        [(device.id, device.process_index) for device in devices],
    )
    key = hashlib.sha256(repr(about).encode()).hexdigest()
    return Path(folder) / f"process-{jax.process_index()}-{key}"


def _write(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all; another job may be writing the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
