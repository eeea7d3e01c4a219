"""The GPUs of this host, counted without starting JAX, which would take hold of them."""

import os
from importlib.metadata import entry_points
from pathlib import Path


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
