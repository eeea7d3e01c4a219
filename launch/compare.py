"""Trains a grid of settings side by side: a table, a CSV file and a picture.

    python -m launch.compare --drop-rates 0 0.1 0.3
    python -m launch.compare --seeds 0 1 2 -- --server received stale --drop-rate 0.1 0.3
    python -m launch.compare -- --epochs 20 -- --packets 64 -- --channel outage --away-rate 0.1

What follows `--` are flags of `launch.train`, for every run. One with several values is an axis:
every combination of the values is trained. After a further `--` stands an alternative, with flags
of its own. Runs that are done already are not repeated, so that a comparison can be stopped and
started again, and can be given more values.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from launch.cli.command_line import (
    DIVERGED,
    Seeds,
    Within,
    exactly,
    not_allowed,
    optional,
    read_command,
    split_arguments,
)
from launch.cli.commands import entry_point
from launch.comparison import report
from launch.comparison.grid import Setting, groups_of, settings_of
from launch.config import Algorithm, TrainConfig, parse
from launch.json_objects import write_json
from launch.reports.provenance import command_line, trained_on
from launch.reports.tables import markdown_table, text_table, write_csv
from launch.tasks.source import find_source
from launch.trainer.many_runs import ends_of_epochs, folder_of, train_all
from launch.trainer.writing import check_can_write

_UNLESS_VARIED = "unless flags after -- are varied"


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Train a grid of settings side by side.

    Flags of launch.train, for every run, may follow after " -- ". One with several values is an
    axis of the grid. A further " -- " begins an alternative, with flags of its own. Where a run
    diverges the others go on, and the exit status is 3.
    """

    algorithms: Annotated[
        tuple[Algorithm, ...] | None,
        optional("NAME [...]", f"rps gradient-averaging, {_UNLESS_VARIED}"),
    ] = None
    """What to compare; those without drops run once."""
    drop_rates: Annotated[
        tuple[float, ...] | None,
        optional("FLOAT [...]", f"0 0.1 0.3, {_UNLESS_VARIED}"),
        Within(0, 1, "probabilities in [0, 1]"),
    ] = None
    """Probabilities that a message is dropped."""
    seeds: Seeds = (0,)
    """A run of each for every seed; table and picture show their means."""
    predict: bool = False
    """Set the consensus distance that theory expects beside the one that was measured."""
    output_dir: Path = Path("runs/compare")
    """Folder of the table, the picture and the runs."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, of_training = split_arguments(argv)
    config = read_command(CompareConfig, "launch.compare", own, CompareConfig())
    if help_asked := {"-h", "--help"}.intersection(of_training):
        parse(list(help_asked))
    settings = _settings(config, of_training)
    check_can_write("output_dir", config.output_dir)
    source, *_ = [find_source(setting.config) for setting in settings]

    folder, seeds = config.output_dir, config.seeds
    runs = [setting.run(folder, seed) for setting in settings for seed in seeds]
    metrics = train_all(runs, source, may_diverge=True)
    summaries = [folder_of(run).read_summary() for run in runs if folder_of(run).is_done]
    results = _results(settings, seeds, runs, metrics)
    done = [result for result in results if result.curves]
    if not done:
        from launch.trainer.recorder import Diverged

        raise Diverged("of every setting, a training has diverged")
    score = summaries[0]["score"]
    header, rows = report.table(results, score, config.predict)
    shown = ([label, *("" if cell is None else cell for cell in cells)] for label, cells in rows)
    in_markdown = markdown_table(["", *header], shown)
    (folder / "table.md").write_text("\n".join(in_markdown) + "\n")
    write_csv(folder / "curves.csv", report.rows(done, seeds, score))
    report.draw(done, score, folder / "curves.png", config.predict)
    how = {
        "command": command_line("launch.compare", config, ("output_dir",), of_training),
        "data": source.description,
        "trained_on": trained_on(summaries),
    }
    write_json(folder / "run.json", how)
    print("", *text_table(header, rows), "", f"results in {folder}/", sep="\n")
    return 0 if len(done) == len(results) else DIVERGED


def _results(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    runs: Sequence[TrainConfig],
    metrics: Sequence[list[dict[str, Any]]],
) -> list[report.Result]:
    """Returns what came of each setting: no curves where a run has diverged."""
    results = []
    for number, setting in enumerate(settings):
        mine = slice(number * len(seeds), (number + 1) * len(seeds))
        whole = all(folder_of(run).is_done for run in runs[mine])
        curves = [ends_of_epochs(lines) for lines in metrics[mine]]
        results.append(report.Result(setting, curves if whole else ()))
    return results


def _settings(config: CompareConfig, of_training: Sequence[str]) -> list[Setting]:
    """Returns the settings that the flags on both sides of `--` ask for."""
    groups = groups_of(of_training)
    given = {name for group in groups for name in group}
    varied = len(groups) > 1 or any(len(values) > 1 for values in groups[0].values())
    algorithms, drop_rates = config.algorithms, config.drop_rates
    if not varied and algorithms is None and "algorithm" not in given:
        algorithms = ("rps", "gradient-averaging")
    if not varied and drop_rates is None and given.isdisjoint(("drop_rate", "channel")):
        drop_rates = (0.0, 0.1, 0.3)
    axes = {}
    for name, values in (("algorithm", algorithms), ("drop_rate", drop_rates)):
        if values is not None:
            axes[name] = [exactly(value) if isinstance(value, float) else value for value in values]
            if name in given:
                not_allowed(f"{name}s", " ".join(axes[name]), f"beside --{name} after --")
    return settings_of(axes, groups)


if __name__ == "__main__":
    sys.exit(main())
