"""A training of several processes, from a checked command line to its end, restarts included."""

import functools
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

from launch.cli.command_line import DIVERGED, USAGE, Within, check_untouched, expect, not_allowed
from launch.config import PROCESS_FLAGS, NetworkName, TrainConfig, default_output_dir, parse
from launch.distributed.process import Command, JobFailed
from launch.distributed.supervisor import supervise
from launch.trainer.run_directory import RunDirectory

LOGS = "logs"
"""Folder of what the processes say, in that of the run."""

_CANNOT_END_OTHERWISE = (USAGE, DIVERGED)

HeartbeatTimeout = Annotated[float, Within(3, math.inf, "at least 3 seconds")]


class Job:
    """One training, as flags of `launch.train` for each of its processes.

    Attributes:
        config: The run, checked.
        folder: Where its results go.
    """

    def __init__(self, train_argv: Sequence[str], network: NetworkName = "collectives") -> None:
        """Checks all that can be checked before a process is started.

        Args:
            train_argv: Flags of launch.train.
            network: What carries the blocks.

        Raises:
            UsageError: They are no valid run.
        """
        self.config: TrainConfig = parse(train_argv, network)
        check_untouched(self.config, TrainConfig(), PROCESS_FLAGS)
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        self.folder = RunDirectory(self.config.output_dir or default_output_dir(self.config, now))
        if not self.config.resume:
            self.folder.check_is_free()
        self._train_argv = list(train_argv)

    def check_processes(self, flag: str, processes: int) -> None:
        """Raises `UsageError` unless so many processes can share the workers evenly."""
        workers = self.config.num_workers
        expect(flag, processes, processes >= 1, "at least 1")
        expect(flag, processes, workers % processes == 0, f"a divisor of {workers} workers")
        each, per_device = workers // processes, self.config.workers_per_device
        divides = per_device is None or each % per_device == 0
        expect(
            "workers_per_device", per_device, divides, f"a divisor of the {each} workers a process"
        )

    def check_restarts(self, max_restarts: int) -> None:
        """Raises `UsageError` if the job could not go on after a restart; over UDP, it can."""
        if max_restarts and self.config.record is not None:
            beside = "beside --max-restarts: a trace begins at the first step"
            not_allowed("record", self.config.record, beside)

    def run(
        self,
        start: Callable[[Sequence[str]], list[Command]],
        max_restarts: int,
        silence: float,
    ) -> int:
        """Runs the job, again and again from its newest checkpoint while it fails.

        Args:
            start: Given the flags that all processes share; returns how each is started.
            max_restarts: How often to start again.
            silence: Seconds without a heartbeat after which a process is taken to hang.

        Returns:
            The exit status.

        Raises:
            JobFailed: It has failed once too often, or would fail again.
        """
        show = functools.partial(print, flush=True)
        for restarts in range(max_restarts + 1):
            commands = start(self.flags())
            try:
                return supervise(commands, self.folder.path / LOGS, silence, show)
            except JobFailed as error:
                again = error.may_restart and error.exit_status not in _CANNOT_END_OTHERWISE
                if restarts == max_restarts or not again:
                    raise
                show(error.report())
                show(f"restart {restarts + 1} of {max_restarts}, from the newest checkpoint")
        raise AssertionError("unreachable")

    def flags(self) -> list[str]:
        """Returns the flags that all processes share, whenever they are started."""
        flags = list(self._train_argv)
        given = self.config.output_dir
        if given is None or not given.is_absolute():
            # The processes may start in another folder; the last flag counts.
            flags += ["--output-dir", str(self.folder.path.absolute())]
        return flags if self.config.resume else [*flags, "--auto-resume"]


def process_flags(coordinator: str, num_processes: int, process_id: int) -> list[str]:
    """Returns the flags by which a process finds its job."""
    flags = ["--coordinator", coordinator, "--num-processes", str(num_processes)]
    return [*flags, "--process-id", str(process_id)]
