"""The training run: from a checked configuration to a directory of results.

Every process of a job runs all of this, in step with the others. Process 0 alone writes metrics and
pictures, and speaks.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rps_jax as rps
from data import Source
from launch.cli.command_line import UsageError, wrapped
from launch.config import TrainConfig
from launch.config_file import deciding
from launch.distributed.consistency import refuse_together
from launch.reports.progress import Progress
from launch.trainer.checkpoints import Checkpoints
from launch.trainer.hook import Hook
from launch.trainer.loop import train_loop
from launch.trainer.metrics import measure_together
from launch.trainer.preemption import Deadline, StopSignals
from launch.trainer.profile import Profiler
from launch.trainer.record import DropRecorder
from launch.trainer.recorder import Recorder
from launch.trainer.resume import begin, is_progress, resume
from launch.trainer.saver import Saver
from launch.trainer.setup import Setup, set_up
from launch.trainer.summary import Summary, setting, summarise
from launch.trainer.writing import only_writer


def train(
    config: TrainConfig,
    source: Source,
    output_dir: Path,
    *,
    keep_checkpoints: int = 3,
    deadline: Deadline | None = None,
) -> Summary | None:
    """Runs a training from its start, or from the newest checkpoint, to its end.

    Args:
        config: A checked configuration.
        source: The data, found and checked.
        output_dir: Where the results go; new, or that of the run to resume. Where there are several
            processes, that of process 0 counts.
        keep_checkpoints: How many checkpoints to keep.
        deadline: When to stop with a checkpoint; by default never.

    Returns:
        The summary that process 0 writes to `summary.json`; None on all others.

    Raises:
        UsageError: The devices cannot hold the workers, the data are damaged, or not those of the
            run to resume, or the processes were not given the same.
        CheckpointError: A checkpoint cannot be written, or cannot be used.
        Diverged: The loss or a model is not finite.
        Stopped: SIGTERM, Ctrl-C or a time limit; a checkpoint was saved.
    """
    setup = set_up(config, source, output_dir)

    def say(text: str) -> None:
        if setup.first_process:
            print(text, flush=True)

    examples = f"{source.num_train:,} training examples"
    say(f"{setup.task.model_name} on {source.description}, {examples}")
    say(wrapped(f"{setting(config)}, on {setup.devices}"))
    checkpoints = Checkpoints(setup.directory.checkpoints, keep_checkpoints, is_progress)
    with _only_writer(setup):
        start = resume(setup, checkpoints, say) if config.resume else begin(setup)
        with (
            StopSignals() as signals,
            Progress(
                setup.schedule, setup.task.score, start.step, shown=setup.first_process
            ) as progress,
        ):

            def write(line: dict[str, Any], state: rps.TrainState) -> None:
                del state
                if setup.first_process:
                    setup.directory.append(line)
                progress.show(line)

            measure = functools.partial(measure_together, setup)
            recorder = Recorder(setup, start, measure, write, checkpoints.steps)
            saver = Saver(setup, checkpoints, recorder, speaks=setup.first_process)

            def received() -> int:
                return signals.first or (deadline.signal_number if deadline else 0)

            hooks: list[Hook] = [progress, recorder, saver]
            steps = setup.schedule.total_steps - start.step
            with contextlib.ExitStack() as held:
                hooks += [held.enter_context(hook) for hook in _asked_for(setup, steps)]
                train_loop(setup, start.state, start.step, received, hooks)
        return summarise(setup, recorder.wall_seconds) if setup.first_process else None


def _asked_for(setup: Setup, steps: int) -> Iterator[contextlib.AbstractContextManager[Hook]]:
    """Yields the hooks of flags: process 0 records the drops of all, and traces its own steps."""
    config = setup.config
    if not setup.first_process:
        return
    if config.record is not None:
        packets = getattr(setup.run.channel, "packets", None) or 1
        yield DropRecorder(config.record, packets, setting(config), deciding(config))
    if config.profile is not None and steps:
        yield contextlib.closing(Profiler(config.profile, steps))


@contextlib.contextmanager
def _only_writer(setup: Setup) -> Iterator[None]:
    """Holds the run directory, on process 0 for all.

    Raises:
        UsageError: Another job writes there, or a new run's directory is not free; on every
            process.
    """
    with contextlib.ExitStack() as held:
        refused = None
        if setup.first_process:
            try:
                held.enter_context(only_writer(setup.directory.path))
                if not setup.config.resume:
                    setup.directory.check_is_free()
            except UsageError as error:
                refused = error
        refuse_together(refused)
        yield
