"""Joins the JAX processes of a job, however they were started, and leaves them.

A process is alone; or it was told where the others are (`--coordinator`, `--num-processes`,
`--process-id`); or it is a task of SLURM or Open MPI, which JAX recognises by itself.
"""

import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from launch.cli.command_line import PEER_LOST, CommandError, UsageError, expect
from launch.config import TrainConfig
from launch.distributed.gpus import visible_gpus
from launch.distributed.rendezvous import RendezvousError, own_address, rendezvous, unreachable

# What Open MPI and SLURM set in their tasks alone, and the integers that JAX and this module read
# there, the number of tasks first. JAX finds the job by these, in this order, because Open MPI may
# start its tasks by SLURM's.
_SCHEDULERS = (
    (
        "OMPI_MCA_orte_hnp_uri",
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ),
    (
        "SLURM_STEP_NODELIST",
        (
            *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES"),
            "SLURM_JOB_ID",
        ),
    ),
)

_HEARTBEAT_SECONDS = 30
"""How long JAX waits for a heartbeat of another process: as long as its CPU collectives do."""


class PeerLost(CommandError):
    """Another process of the job has gone, and this one cannot go on without it."""

    exit_status = PEER_LOST


def count_processes(config: TrainConfig) -> int:
    """Returns how many processes the job has, before any has been met.

    Raises:
        UsageError: A scheduler has started so many that they cannot share the workers evenly.
    """
    processes = config.num_processes or _scheduled() or 1
    divides = config.num_workers % processes == 0
    expect("num_workers", config.num_workers, divides, f"a multiple of the {processes} processes")
    return processes


def join(config: TrainConfig) -> None:
    """Meets the other processes, if there are any; before anything asks JAX for its devices.

    Raises:
        RendezvousError: They have not come together.
    """
    # It would catch SIGTERM in the place of launch.trainer.preemption.
    jax.config.update("jax_enable_preemption_service", False)
    if config.num_processes is not None:
        if config.num_processes == 1:
            return
        assert config.coordinator is not None  # as the command line was checked for
        assert config.process_id is not None
        rendezvous(
            config.coordinator,
            config.num_processes,
            config.process_id,
            config.start_timeout,
            gloo=not visible_gpus(),
        )
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    elif _scheduled():
        reason = unreachable(socket.gethostname(), own_address())
        if reason and _over_hosts() and not visible_gpus():
            raise RendezvousError(reason)
        # Left to itself, JAX gives a task one GPU; the only one of a host is to have all.
        gpus = range(len(visible_gpus())) if _alone_on_host() else None
        jax.distributed.initialize(
            local_device_ids=gpus,
            initialization_timeout=int(config.start_timeout),
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )


@contextmanager
def report_lost_peers() -> Iterator[None]:
    """Turns what JAX raises when another process has gone into a `PeerLost`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not any(word in text for word in ("Gloo", "NCCL", "oordination")):
            raise
        raise PeerLost(f"another process of the job has gone ({text.splitlines()[0]})") from error


def run_and_leave(main: Callable[[], int]) -> int:
    """Runs the main function of a process, and leaves the job; returns the exit status.

    A process that has failed does not wait for the others, as JAX would have it: they are told
    sooner by its end.
    """
    try:
        status = main()
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        status = 1
    if jax.distributed.is_initialized():
        if status:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        jax.distributed.shutdown()
    return status


def _scheduled() -> int:
    """Returns how many tasks a scheduler has started of which this is one, 0 if it has not."""
    for marker, variables in _SCHEDULERS:
        if marker in os.environ:
            counts = [_integer(name) for name in variables]
            if counts[0] > 1:
                return counts[0]
    return 0


def _integer(name: str) -> int:
    """Returns the value of a scheduler's variable, 1 if it is not set."""
    value = os.environ.get(name, "1")
    if re.fullmatch("[0-9]{1,18}", value) is None:
        raise UsageError(f"{name}={value}: expected an integer, as a scheduler sets it")
    return int(value)


def _alone_on_host() -> bool:
    here = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    if here is not None:
        return here == "1"
    return os.environ.get("SLURM_STEP_NUM_NODES") == os.environ.get("SLURM_NTASKS")


def _over_hosts() -> bool:
    if _integer("SLURM_STEP_NUM_NODES") > 1:
        return True
    here = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    return here is not None and here != os.environ.get("OMPI_COMM_WORLD_SIZE")
