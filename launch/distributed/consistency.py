"""The processes of a job compare what they were given, before they work together.

A job whose processes differ in version, seed, flag or data would not fail: it would train something
that nobody asked for, or wait for ever. So each says what it has, and any difference is refused.
"""

import dataclasses
import json
import platform
import socket
import time
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import rps_jax as rps
from data import Dataset
from launch.cli.command_line import UsageError
from launch.cli.fields import Mark, marked
from launch.config import TrainConfig

_ROWS = 5_000
"""How many examples of a split the digest of the data covers at most; every process reads them."""

_LATEST_SECONDS = 60.0
"""How late a network file system may show a new file."""


def digest_of(dataset: Dataset) -> str:
    """Returns a digest of all labels, and of examples at even distances through the data."""
    checksum = 0
    for split in (dataset.train, dataset.test):
        rows = len(split[dataset.label_key])
        for key in sorted(split):
            step = 1 if key == dataset.label_key else -(-rows // _ROWS)
            checksum = zlib.crc32(np.ascontiguousarray(split[key][::step]).data, checksum)
    return f"{checksum:08x}"


def check_consistency(config: TrainConfig, data: str, output_dir: Path) -> Path:
    """Compares this process with all others.

    Args:
        config: The flags.
        data: Description and digest of the data.
        output_dir: Where this process would put the results.

    Returns:
        Where process 0 puts them, for all.

    Raises:
        UsageError: They differ; the message names in what. All processes raise the same.
    """
    if jax.process_count() == 1:
        return output_dir
    devices = [device.process_index for device in jax.devices()]
    counts = [devices.count(i) for i in range(jax.process_count())]
    for process, count in enumerate(counts):
        if count != counts[0]:
            raise UsageError(
                f"process {process}: expected {counts[0]} devices, as process 0 has, found {count};"
                " --num-workers, --workers-per-device and --num-processes must be the same"
            )
    mine = {"host": socket.gethostname(), "output_dir": str(output_dir.absolute())}
    own = marked(TrainConfig, Mark.MAY_DIFFER)
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k not in own}
    everyone = _gather(mine | {"same": what_must_be_the_same(flags, data)})
    first = everyone[0]
    for process, other in enumerate(everyone):
        found = differences(other["same"], first["same"])
        if found:
            raise UsageError(
                f"process {process} on {other['host']} has {found}, as process 0 on "
                f"{first['host']} has it; expected the same"
            )
    return Path(first["output_dir"])


def refuse_together(error: UsageError | None) -> None:
    """Raises on every process what process 0 has to refuse.

    Args:
        error: Error of process 0, None if there is none; those of the others are ignored.
    """
    if jax.process_count() > 1:
        said = _gather({"error": None if error is None else str(error)})[0]["error"]
        error = None if said is None else UsageError(said)
    if error is not None:
        raise error


def check_shared(file: Path) -> None:
    """Checks, on every process, that process 0's folder is everybody's.

    Args:
        file: A file that process 0 has just written.

    Raises:
        UsageError: This process does not see it: its part of each checkpoint would be lost.
    """
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("folder")
    deadline = time.monotonic() + _LATEST_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise UsageError(
                f"--output-dir {file.parent}: expected a folder that all hosts share, found "
                f"nothing of process 0 on {socket.gethostname()}"
            )
        time.sleep(0.2)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Returns in what a process differs from another, for people; empty if in nothing.

    Args:
        found: What it said, of `what_must_be_the_same`.
        expected: The same of the other.
    """
    different = [
        f"{name} {found.get(name)} instead of {value}"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    return ", ".join(different)


def what_must_be_the_same(flags: Mapping[str, Any], data: str) -> dict[str, str]:
    """Returns what all processes of a job must have, by name: versions, flags, data.

    Args:
        flags: Values by the names of their fields.
        data: Description and digest of the data.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "rps-jax": rps.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version(name) for name in packages},
        **{"--" + name.replace("_", "-"): str(value) for name, value in flags.items()},
        "data": data,
    }


def _gather(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages of all processes, in their order."""
    encoded = np.frombuffer(json.dumps(message).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(encoded)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(encoded)] = encoded
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
