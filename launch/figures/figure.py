"""Figures 4 and 5 of the paper, from the data to the picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from launch.cli.command_line import OF_SEEDS, expect, optional, read_command, refuse
from launch.cli.fields import AT_LEAST_1
from launch.config_checks import check
from launch.distributed.programs import keep_programs
from launch.figures.options import TimeLimit, check_folders, given_or
from launch.figures.paper import (
    FIGURES,
    TRAINING_LOSS,
    Model,
    Scale,
    ScaleName,
    Shown,
    scale_of,
)
from launch.figures.results import write_run
from launch.figures.runs import Curve, Run, Shared, curves_of, find_data, plan
from launch.figures.tables import table
from launch.reports.tables import write_csv
from launch.trainer.many_runs import folder_of, train_all
from launch.trainer.preemption import Deadline
from rps_jax.averaging import OnMiss


@dataclasses.dataclass(frozen=True)
class FigureConfig:
    """Train what a figure of the paper shows, and draw it.

    Runs that are done already are not repeated, and one that was stopped goes on, so that the same
    command can be given until the figure is there. Figures 4 and 5 of a model share their runs.
    """

    data_path: Annotated[Path | None, optional("PATH", "tensorflow-datasets' own folder")] = None
    """File or folder of the data."""
    scale: ScaleName = "paper"
    """The paper's experiment; of the ResNets, few images until they are learnt; or half an hour."""
    seeds: Annotated[
        tuple[int, ...] | None, optional("INT [INT ...]", "0 1 2; reduced: 0"), OF_SEEDS
    ] = None
    """A training of each curve for every seed."""
    arrivals: Annotated[
        tuple[float, ...] | None, optional("PERCENT [...]", "figure 4: 100 99 95 90 80; 5: 100 99")
    ] = None
    """Probabilities that a message arrives."""
    on_miss: tuple[OnMiss, ...] = ("own",)
    """Figure 5: what is applied where no average arrives: the own gradient, or none."""
    epochs: Annotated[int | None, optional("INT", "those of the scale")] = None
    """Train for longer or shorter; in folders of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's computation; parameters and averages are always float32."""
    workers_per_device: Annotated[int | None, optional("INT", "as few as possible"), AT_LEAST_1] = (
        None
    )
    """How many workers share a device; a CPU is split into as many devices as needed."""
    time_limit: TimeLimit = None
    """Save a checkpoint after so long and stop, with exit status 142; the next call goes on."""
    runs_dir: Path = Path("runs/reproduce")
    """Folder of the trainings."""
    output_dir: Annotated[
        Path | None, optional("PATH", "docs/results/FIGURE, or docs/results/FIGURE-SCALE")
    ] = None
    """Folder of the picture, the table and the numbers."""


def run(figure: str, argv: Sequence[str]) -> int:
    """Runs the command of a figure; returns its exit status."""
    config = read_command(FigureConfig, f"launch.reproduce {figure}", argv, FigureConfig())
    deadline = Deadline(config.time_limit)
    shown = FIGURES[figure]
    scale = scale_of(shown.model, config.scale).with_epochs(config.epochs)
    config = _completed(config, figure, shown)
    runs = _runs(shown, scale, config)
    trainings = [training.config for training in runs]
    source = find_data(scale, trainings)

    keep_programs(config.runs_dir / "compiled")
    metrics = train_all(
        trainings,
        source,
        deadline=deadline,
        keep_checkpoints=False,
    )
    summaries = [folder_of(training).read_summary() for training in trainings]
    score = summaries[0]["score"]
    curves = curves_of(runs, metrics, score)
    _write(figure, shown.model, scale, config, runs, curves, summaries)
    return 0


def _completed(config: FigureConfig, figure: str, shown: Shown) -> FigureConfig:
    """Returns the options with their defaults, checked."""
    if config.on_miss != ("own",) and not shown.gradients:
        refuse("on_miss", " ".join(config.on_miss), "none in figure 4, where models are shared")
    paper = config.scale == "paper"
    name = figure + (f"-{config.scale}" * (not paper)) + _suffix(config)
    config = dataclasses.replace(
        config,
        seeds=given_or(config.seeds, (0,) if config.scale == "reduced" else (0, 1, 2)),
        arrivals=given_or(config.arrivals, (100, 99) if shown.gradients else (100, 99, 95, 90, 80)),
        output_dir=config.output_dir or Path("docs/results", name),
    )
    assert config.arrivals is not None
    for arrival in config.arrivals:
        expect("arrivals", f"{arrival:g}", 0 <= arrival <= 100, "percentages, in [0, 100]")
    check_folders(config)
    return config


def _suffix(config: FigureConfig) -> str:
    """Returns what the names of folders end with."""
    return "" if config.epochs is None else f"-epochs-{config.epochs}"


def _runs(shown: Shown, scale: Scale, config: FigureConfig) -> list[Run]:
    assert config.arrivals is not None
    assert config.seeds is not None
    pairs: list[tuple[Shared, float]] = [("rps", arrival) for arrival in config.arrivals]
    if shown.gradients:
        # Where nothing is missed, it does not matter what is applied instead.
        gradients: list[tuple[Shared, float]] = [
            ("gradient-averaging-zero", arrival)
            if on_miss == "zero" and arrival < 100
            else ("gradient-averaging", arrival)
            for on_miss in config.on_miss
            for arrival in config.arrivals
        ]
        pairs += dict.fromkeys(gradients)
    base = dataclasses.replace(
        scale.config,
        data_path=config.data_path,
        dtype=config.dtype,
        workers_per_device=config.workers_per_device,
        output_dir=config.runs_dir / f"{shown.model}-{config.scale}{_suffix(config)}",
    )
    runs = plan(base, pairs, config.seeds)
    for training in runs:
        check(training.config)
    return runs


def _write(
    figure: str,
    model: Model,
    scale: Scale,
    config: FigureConfig,
    runs: Sequence[Run],
    curves: Sequence[Curve],
    summaries: list[dict[str, Any]],
) -> None:
    """Writes the folder of the figure; prints its table."""
    # Imported late: it takes a second.
    from launch.figures.picture import draw, draw_distance

    assert config.output_dir is not None
    assert config.seeds is not None
    folder, score = config.output_dir, summaries[0]["score"]
    paper = {} if scale.reduced else TRAINING_LOSS[model]
    title = (
        f"{figure}: {summaries[0]['data']}, {scale.config.num_workers} workers, "
        f"{scale.config.epochs} epoch{'s' * (scale.config.epochs > 1)}"
    )
    if scale.reduced:
        title += f"\nreduced: {scale.reduced}"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "curves.csv", _rows(curves, config.seeds))
    draw(curves, paper, score, title, folder / "curves.png")
    draw_distance(curves, title, folder / "consensus_distance.png")
    said = title.replace("\n", "; ")
    text = f"{said}.\n{table(curves, paper, score.replace('_', ' '), config.seeds)}"
    (folder / "table.md").write_text(text)
    write_run(folder, figure, config, scale, runs[0].config, summaries)
    print(f"\n{text}\nresults in {folder}/")


def _rows(curves: Sequence[Curve], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns a row for each algorithm, probability, seed and epoch."""
    return [
        {
            "algorithm": curve.shared,
            "arrival": f"{curve.arrival:g}",
            "seed": seed,
            "epoch": f"{epoch:g}",
            "mean_model_train_loss": curve.mean_model_train_loss[row, column],
            "train_loss": curve.train_loss[row, column],
            "test_metric": curve.test_metric[row, column],
            "consensus_distance": curve.consensus_distance[row, column],
        }
        for curve in curves
        for row, seed in enumerate(seeds)
        for column, epoch in enumerate(curve.epochs)
    ]
