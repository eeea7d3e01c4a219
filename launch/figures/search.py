"""The search for what the paper leaves out: learning rate, batch size and schedule, lossless."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from launch.cli.command_line import Seed, UsageError, exactly, optional, read_command
from launch.cli.fields import AT_LEAST_1, POSITIVE
from launch.config import ScheduleName, TrainConfig
from launch.config_checks import check
from launch.distributed.programs import keep_programs
from launch.figures.options import TimeLimit, check_folders, given_or
from launch.figures.paper import Model, Scale, ScaleName, scale_of
from launch.figures.results import write_run
from launch.figures.runs import find_data
from launch.reports.tables import markdown_table
from launch.trainer.many_runs import folder_of, train_all
from launch.trainer.preemption import Deadline


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Find the learning rate, batch size and schedule that train best without drops.

    The best has the lowest training loss of the mean model at the end. Figures 4 and 5 are made
    with it at every drop rate.
    """

    model: Model = "lstm"
    """What to train."""
    data_path: Annotated[Path | None, optional("PATH", "tensorflow-datasets' own folder")] = None
    """File or folder of the data."""
    scale: ScaleName = "paper"
    """As in the figures."""
    learning_rates: Annotated[
        tuple[float, ...] | None,
        optional("FLOAT [...]", "a half, one and two times that of the figures"),
        POSITIVE,
    ] = None
    """Step sizes, before the schedule lowers them."""
    batch_sizes: Annotated[
        tuple[int, ...] | None, optional("INT [...]", "that of the figures"), AT_LEAST_1
    ] = None
    """Examples that a worker takes in each step."""
    schedules: Annotated[
        tuple[ScheduleName, ...] | None, optional("NAME [...]", "that of the figures")
    ] = None
    """How the step size goes down."""
    epochs: Annotated[int | None, optional("INT", "those of the figures")] = None
    """Passes over the training data."""
    seed: Seed = 0
    """Seed of all trainings."""
    time_limit: TimeLimit = None
    """Save a checkpoint after so long and stop, with exit status 142; the next call goes on."""
    runs_dir: Path = Path("runs/reproduce")
    """Folder of the trainings."""
    output_dir: Annotated[Path | None, optional("PATH", "docs/results/search-MODEL-SCALE")] = None
    """Folder of the table."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(SearchConfig, "launch.reproduce search", argv, SearchConfig())
    deadline = Deadline(config.time_limit)
    scale = scale_of(config.model, config.scale).with_epochs(config.epochs)
    config = _completed(config, scale.config)
    runs = _runs(config, scale.config)
    source = find_data(scale, runs)

    keep_programs(config.runs_dir / "compiled")
    train_all(runs, source, deadline=deadline, keep_checkpoints=False, may_diverge=True)
    _write(config, scale, runs)
    return 0


def _completed(config: SearchConfig, chosen: TrainConfig) -> SearchConfig:
    """Returns the options with their defaults, checked."""
    rate = chosen.learning_rate
    config = dataclasses.replace(
        config,
        learning_rates=given_or(config.learning_rates, (rate / 2, rate, 2 * rate)),
        batch_sizes=given_or(config.batch_sizes, (chosen.batch_size,)),
        schedules=given_or(config.schedules, (chosen.schedule,)),
        output_dir=config.output_dir or Path(f"docs/results/search-{config.model}-{config.scale}"),
    )
    check_folders(config)
    return config


def _runs(config: SearchConfig, chosen: TrainConfig) -> list[TrainConfig]:
    rates, sizes, schedules = config.learning_rates, config.batch_sizes, config.schedules
    assert rates
    assert sizes
    assert schedules
    runs = []
    for batch_size, schedule, rate in itertools.product(sizes, schedules, rates):
        name = f"lr-{exactly(rate)}-batch-{batch_size}-{schedule}-epochs-{chosen.epochs}"
        runs.append(
            dataclasses.replace(
                chosen,
                algorithm="all-reduce",
                drop_rate=0.0,
                data_path=config.data_path,
                learning_rate=rate,
                batch_size=batch_size,
                schedule=schedule,
                seed=config.seed,
                output_dir=config.runs_dir / f"search-{config.model}-{config.scale}" / name,
            )
        )
    for training in runs:
        check(training)
    return runs


def _write(config: SearchConfig, scale: Scale, runs: Sequence[TrainConfig]) -> None:
    """Writes the folder of the search; prints its table."""
    assert config.output_dir is not None
    done = [run for run in runs if folder_of(run).is_done]
    summaries = {run: folder_of(run).read_summary() for run in done}
    if not done:
        raise UsageError("--learning-rates: expected smaller ones; every training has diverged")
    score = summaries[done[0]]["score"]
    best = min(done, key=lambda run: summaries[run]["mean_model_train_loss"])
    header = ["learning rate", "batch size", "schedule", "training loss of the mean model"]
    header += [score.replace("_", " "), ""]
    rows = []
    for run in runs:
        cells = [f"{run.learning_rate:g}", run.batch_size, run.schedule, "diverged", "", ""]
        if run in summaries:
            found = summaries[run]
            cells[3:5] = [f"{found['mean_model_train_loss']:.4f}", f"{found[score]:.4f}"]
            cells[5] = "best" * (run == best)
        rows.append(cells)
    title = (
        f"{summaries[best]['data']}, {best.num_workers} workers, no drops; {best.epochs} "
        f"epoch{'s' * (best.epochs > 1)}, seed {config.seed}."
    )
    text = "\n".join([title, "", *markdown_table(header, rows)]) + "\n"
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "table.md").write_text(text)
    write_run(config.output_dir, "search", config, scale, best, list(summaries.values()))
    print(f"\n{text}\nresults in {config.output_dir}/")
