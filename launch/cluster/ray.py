"""Runs a training on a Ray cluster, by Ray Train: `python -m launch.cluster.ray --help`.

    python -m launch.cluster.ray --processes 4
    python -m launch.cluster.ray --processes 4 -- --preset atis-lstm --data-path ATIS

What follows `--` are flags of `launch.train`. Ray starts its workers, and starts them all again
when one fails; each worker runs one process of the job. Every node has this checkout at the same
place, and they all share the folder of --output-dir. Ray is not among the dependencies:
`pip install "ray[train]"`.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from launch.cli.command_line import UsageError, read_command, split_arguments
from launch.cli.commands import entry_point
from launch.cli.fields import AT_LEAST_0, AT_LEAST_1
from launch.distributed.heartbeat import BEAT, ENVIRONMENT
from launch.distributed.job import Job, process_flags
from launch.distributed.ports import free_port
from launch.distributed.process import JobFailed


@dataclasses.dataclass(frozen=True)
class RayConfig:
    """Run a training on a Ray cluster.

    Flags of launch.train may follow after " -- ".
    """

    processes: int = 2
    """How many processes, each a worker of Ray, share the workers of the training."""
    cpus_per_process: Annotated[int, AT_LEAST_1] = 1
    """CPUs that Ray sets aside for each."""
    gpus_per_process: Annotated[int, AT_LEAST_0] = 0
    """GPUs that Ray sets aside for each."""
    max_restarts: Annotated[int, AT_LEAST_0] = 0
    """How often to start the job again, from its newest checkpoint, when a process fails."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, of_training = split_arguments(argv)
    config = read_command(RayConfig, "launch.cluster.ray", own, RayConfig())
    job = Job(of_training)
    job.check_processes("processes", config.processes)
    job.check_restarts(config.max_restarts)
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.v2.jax import JaxConfig, JaxTrainer
    except ImportError as error:
        raise UsageError(f'expected Ray Train: pip install "ray[train]" ({error})') from None
    folder = str(job.folder.path.absolute())
    trainer = JaxTrainer(
        run_process,
        train_loop_config={"flags": job.flags(), "directory": os.getcwd()},
        # The processes join JAX's job by themselves, not the workers in their place.
        jax_config=JaxConfig(use_tpu=False, use_gpu=False),
        scaling_config=ScalingConfig(
            num_workers=config.processes,
            use_gpu=config.gpus_per_process > 0,
            resources_per_worker={"CPU": config.cpus_per_process, "GPU": config.gpus_per_process},
        ),
        run_config=RunConfig(
            storage_path=os.path.join(folder, "ray"),
            failure_config=FailureConfig(max_failures=config.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise JobFailed(str(error), 1) from error
    return 0


def run_process(options: dict[str, Any]) -> None:
    """Runs one process of the job, from within the worker of Ray that stands for it.

    It is a process of its own because a training takes the main thread, which is Ray's.

    Args:
        options: `flags` of launch.train, and the `directory` of this checkout.

    Raises:
        RuntimeError: The process has failed.
    """
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    number, count = get_context().get_world_rank(), get_context().get_world_size()
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    coordinator = broadcast_from_rank_zero(address)
    argv = [sys.executable, "-m", "launch.train", *options["flags"]]
    process = subprocess.Popen(
        [*argv, *process_flags(coordinator, count, number)],
        cwd=options["directory"],
        env={**os.environ, ENVIRONMENT: "1"},
        stdin=subprocess.PIPE,  # When Ray ends this worker, the process ends with it.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        # Not by print: Ray has one of its own, which says everything twice.
        sys.stdout.write(line.replace(BEAT, b"").decode(errors="replace"))
        sys.stdout.flush()
    if process.wait():
        raise RuntimeError(f"process {number} of {count} ended with status {process.returncode}")


if __name__ == "__main__":
    sys.exit(main())
