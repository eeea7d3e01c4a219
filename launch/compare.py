"""Trains the algorithms and drop rates side by side: a table, a CSV file and a picture.

    python -m launch.compare --drop-rates 0 0.1 0.3
    python -m launch.compare --drop-rates 0 0.01 -- --preset atis-lstm --data-path ATIS

What follows `--` are flags of `launch.train`, for every run. Runs that are done already are not
repeated, so that a comparison can be stopped and started again.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.channels import CHANNELS
from launch.cli.command_line import (
    Probabilities,
    Seeds,
    check_untouched,
    exit_status,
    expect,
    read_command,
    split_arguments,
)
from launch.cli.fields import fields_of
from launch.config import (
    LOSSY,
    PRESETS,
    PROCESS_FLAGS,
    Algorithm,
    TrainConfig,
    check,
    parse,
)
from launch.reports.intervals import interval
from launch.reports.tables import markdown_table, write_csv
from launch.tasks.source import find_source
from launch.trainer.many_runs import folder_of, train_all
from launch.trainer.run_directory import check_can_write


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Train the algorithms and drop rates side by side.

    Flags of launch.train, for every run, may follow after " -- ".
    """

    algorithms: tuple[Algorithm, ...] = ("rps", "gradient-averaging")
    """What to compare; those without drops run once."""
    drop_rates: Probabilities = (0.0, 0.1, 0.3)
    """Probabilities that a message is dropped."""
    seeds: Seeds = (0,)
    """A run of each for every seed; the picture shows their means."""
    output_dir: Path = Path("runs/compare")
    """Folder of the table, the picture and the runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return exit_status(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    own, of_training = split_arguments(argv)
    config = read_command(CompareConfig, "launch.compare", own, CompareConfig())
    base = parse(of_training)
    runs = _plan(config, base)
    source = find_source(base)

    results = list(zip(runs, train_all(runs, source), strict=True))
    score = folder_of(runs[0]).read_summary()["score"]
    table = _table(results, score)
    print(f"\n{table}\nresults in {config.output_dir}/")
    (config.output_dir / "table.md").write_text(table)
    write_csv(config.output_dir / "curves.csv", _rows(results, score))
    _draw(results, config.output_dir / "curves.png")
    return 0


def _plan(config: CompareConfig, base: TrainConfig) -> list[TrainConfig]:
    """Returns every run; an algorithm without drops runs once."""
    flags = fields_of(CHANNELS[base.channel].flags)
    expect("channel", base.channel, "drop_rate" in flags, "a channel that has a --drop-rate")
    own = ("algorithm", "drop_rate", "all_gather_drop_rate", "seed", "output_dir", "resume")
    check_untouched(base, PRESETS[base.preset], (*own, "record", *PROCESS_FLAGS))
    # What an algorithm without drops may not be given.
    reliable = {name: getattr(PRESETS[base.preset], name) for name in ("channel", *flags)}
    runs = []
    for algorithm in config.algorithms:
        lossy = algorithm in LOSSY
        for drop_rate in config.drop_rates if lossy else (0.0,):
            for seed in config.seeds:
                run = dataclasses.replace(base, **({} if lossy else reliable))
                name = f"{algorithm}-{drop_rate:g}-{seed}"
                runs.append(
                    dataclasses.replace(
                        run,
                        algorithm=algorithm,
                        drop_rate=drop_rate,
                        seed=seed,
                        output_dir=config.output_dir / name,
                    )
                )
    check_can_write("output_dir", config.output_dir)
    for run in runs:
        check(run)
    return runs


def _label(run: TrainConfig) -> str:
    if run.algorithm not in LOSSY:
        return run.algorithm
    return f"{run.algorithm}, {CHANNELS[run.channel].describe(run)}"


def _grouped(results: list[Any]) -> dict[str, list[Any]]:
    """Returns the metrics at the epochs' ends of each seed, by label."""
    groups: dict[str, list[Any]] = {}
    for run, lines in results:
        ends = [line for line in lines if "mean_model_train_loss" in line]
        groups.setdefault(_label(run), []).append(ends)
    return groups


def _table(results: list[Any], score: str) -> str:
    keys = ("mean_model_train_loss", "train_loss", score, "consensus_distance")
    header = ["", *(key.replace("_", " ") for key in keys)]
    rows = [
        [label, *(interval([ends[-1][key] for ends in seeds]) for key in keys)]
        for label, seeds in _grouped(results).items()
    ]
    return "\n".join(markdown_table(header, rows)) + "\n"


def _rows(results: list[Any], score: str) -> list[dict[str, Any]]:
    """Returns a row for each run and epoch."""
    keys = ("epoch", "mean_model_train_loss", "train_loss", score, "consensus_distance")
    return [
        {"algorithm": run.algorithm, "drop_rate": run.drop_rate, "seed": run.seed}
        | {key: line[key] for key in keys}
        for run, lines in results
        for line in lines
        if score in line
    ]


def _draw(results: list[Any], path: Path) -> None:
    import matplotlib
    import numpy as np
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    from launch.reports.curves import STYLE

    rates = sorted({run.drop_rate for run, _ in results if run.algorithm in LOSSY})
    algorithms = list(dict.fromkeys(run.algorithm for run, _ in results))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        loss, distance = figure.subplots(1, 2)
        runs = {_label(run): run for run, _ in results}
        for label, seeds in _grouped(results).items():
            run = runs[label]
            place = rates.index(run.drop_rate) if run.algorithm in LOSSY else 0
            # A colour for each algorithm, the darker the more is dropped.
            colour = np.array(to_rgb(f"C{algorithms.index(run.algorithm)}"))
            style: dict[str, Any] = {
                "color": 1 - (1 - colour) * (place + 1) / max(len(rates), 1),
                "linestyle": "--" if run.drop_rate == 0 else "-",
            }
            epochs = [line["epoch"] for line in seeds[0]]
            for axes, key in ((loss, "mean_model_train_loss"), (distance, "consensus_distance")):
                values = np.mean([[line[key] for line in ends] for ends in seeds], axis=0)
                axes.plot(epochs, values, label=label, **style)
        loss.set(xlabel="epoch", ylabel="training loss of the mean model", yscale="log")
        distance.set(xlabel="epoch", ylabel="consensus distance")
        distance.set_ylim(bottom=0)
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(path, dpi=160)


if __name__ == "__main__":
    sys.exit(main())
