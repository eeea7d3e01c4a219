"""Starts JAX with a device for each worker."""

import os

import jax

from launch.cli.command_line import expect
from launch.distributed.gpus import check_platforms
from launch.distributed.memory import keep_memory

_MOST_HOST_DEVICES = 32
"""Beyond this many, workers share the host devices, unless it is said otherwise: each device costs
threads and a share of the cores."""
_LARGEST_HOST = 1024
"""Most host devices that may be asked for."""


def start_devices(num_workers: int, workers_per_device: int | None) -> None:
    """Splits the CPU into as many devices as there are workers, where the CPU is what there is.

    Each process of a job does so for its own workers.

    To be called before anything asks JAX for its devices.

    Args:
        num_workers: How many workers this process has.
        workers_per_device: How many share a device; None for as few as possible.

    Raises:
        UsageError: JAX has no such platform, or a CPU cannot be so many devices.
    """
    check_platforms()
    keep_memory()
    if workers_per_device is None:
        wanted = min(num_workers, _MOST_HOST_DEVICES)
    else:
        wanted = num_workers // workers_per_device
        least = -(-num_workers // _LARGEST_HOST)
        expect(
            "workers_per_device", workers_per_device, wanted <= _LARGEST_HOST, f"at least {least}"
        )
    jax.config.update("jax_num_cpu_devices", wanted)
    if jax.__version_info__ >= (0, 12, 1):
        return  # XLA ends the process on a flag that it does not know; those before know these.
    # Many devices on few cores wait for one another: let a starved thread be late.
    patience = (
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    os.environ["XLA_FLAGS"] = f"{patience} {os.environ.get('XLA_FLAGS', '')}".strip()
