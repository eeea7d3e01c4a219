"""The GPUs of this host, counted without starting JAX, which would take hold of them."""

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from launch.cli.command_line import UsageError, expect

_PLATFORMS = ("cpu", "cuda", "gpu", "rocm", "tpu")
"""Those that JAX knows without a plugin of their name."""
_MEMORY = 0.75
"""Share of a GPU's memory that JAX takes by default."""


def visible_gpus() -> list[str]:
    """Returns the NVIDIA GPUs that JAX would use here, as CUDA_VISIBLE_DEVICES names them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    if not any("cuda" in plugin.name for plugin in entry_points(group="jax_plugins")):
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def take_gpu(place: int, processes: int) -> None:
    """Leaves this process one GPU, or its share of one, of those of its host.

    To be called before anything asks JAX for its devices.

    Args:
        place: Number of this process among those of its host.
        processes: How many there are; they may share a GPU, as long as NCCL does not join them.
    """
    gpus = visible_gpus()
    if not gpus:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    sharing = len(range(place % len(gpus), processes, len(gpus)))
    if sharing > 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_MEMORY / sharing:.3f}")


def check_platforms() -> None:
    """Raises `UsageError` where JAX cannot start on the platforms of `JAX_PLATFORMS`."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    plugins = [plugin.name.lower() for plugin in entry_points(group="jax_plugins")]
    for platform in filter(None, asked.split(",")):
        known = platform in _PLATFORMS or any(platform.lower() in name for name in plugins)
        if not known:
            raise UsageError(f"JAX_PLATFORMS={asked}: expected some of {', '.join(_PLATFORMS)}")
        if platform == "cuda" and not visible_gpus():
            raise UsageError(f"JAX_PLATFORMS={asked}: expected a GPU that JAX can use, found none")


def share_gpus(gpus: Sequence[str], processes: int, each: int | None) -> list[list[str]]:
    """Returns the GPUs of each process, empty lists where there are none.

    Args:
        gpus: Those of this machine.
        processes: How many processes share them; NCCL lets no two have the same.
        each: How many each gets; None for as many as there are.

    Raises:
        UsageError: There are too few.
    """
    if not gpus:
        return [[] for _ in range(processes)]
    expect("processes", processes, processes <= len(gpus), f"at most {len(gpus)}, one a GPU")
    share = each or len(gpus) // processes
    expect(
        "devices_per_process",
        each,
        share * processes <= len(gpus),
        f"at most {len(gpus) // processes}, of {len(gpus)} GPUs",
    )
    return [list(gpus[i * share : (i + 1) * share]) for i in range(processes)]
