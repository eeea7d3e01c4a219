r"""Trains over UDP and by an all-reduce over TCP, on the same links: loss over wall-clock time.

    python -m launch.bench training --output-dir docs/results/wire-training -- \
        --preset atis-lstm --data-path ATIS --epochs 2

The hosts are network namespaces (`launch.bed`), and `launch.hosts` trains on them as on any others.
In a further run messages are of 16 bits, in another a worker over UDP is killed, and started again.
A run that is done is not repeated. What follows `--` are flags of `launch.train`.
"""

import contextlib
import dataclasses
import itertools
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib
from matplotlib.figure import Figure

from launch.bed import Bed, Link
from launch.benchmarks.beds import check_bed
from launch.benchmarks.results import write_results
from launch.cli.command_line import (
    CommandError,
    Within,
    exactly,
    not_allowed,
    read_command,
    refuse,
    requires,
    split_arguments,
)
from launch.cli.fields import names_given
from launch.config import NetworkName, parse, stored_config
from launch.json_objects import write_text
from launch.reports.curves import STYLE
from launch.reports.tables import markdown_table
from launch.tasks.source import find_source
from launch.trainer.run_directory import RunDirectory
from launch.trainer.writing import check_can_write, only_writer

_KILL_AT = 0.4
"""Share of the run after which a worker is killed."""
_STOPPED = "stopped"
"""File in the folder of a run that took too long."""


@dataclasses.dataclass(frozen=True)
class _Way:
    """A way to train.

    Attributes:
        title: For people.
        flags: Of `launch.train`.
        line: How its curve is drawn.
        network: Of `launch.hosts`; collectives go over TCP.
        killed: Whether a worker is killed, and started again; at the highest drop rate alone.
    """

    title: str
    flags: tuple[str, ...]
    line: dict[str, Any]
    network: NetworkName = "udp"
    killed: bool = False


_RPS = ("--algorithm", "rps")
_WAYS = {
    "udp": _Way("RPS over UDP", _RPS, {"color": "C0"}),
    "udp-float16": _Way(
        "RPS over UDP, messages in float16",
        (*_RPS, "--message-dtype", "float16"),
        {"color": "C0", "linestyle": ":"},
    ),
    "udp-killed": _Way(
        "RPS over UDP, a worker killed and restarted",
        _RPS,
        {"color": "C2", "linestyle": "--"},
        killed=True,
    ),
    "tcp": _Way(
        "all-reduce over TCP",
        ("--algorithm", "all-reduce"),
        {"color": "C1"},
        network="collectives",
    ),
}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Train over UDP and by an all-reduce over TCP, on links that drop packets.

    Flags of launch.train follow after " -- ". Needs Linux, root, and the commands `ip` and `tc`.
    """

    output_dir: Path | None = None
    """Folder for the runs, the table and the picture."""
    rates: Annotated[tuple[float, ...], Within(1, 10_000)] = (100, 1000)
    """Of every host's link, in each direction; Mbps."""
    drop_rates: Annotated[tuple[float, ...], Within(0, 0.3)] = (0.01, 0.1)
    """Probabilities that a packet is dropped on its way."""
    num_workers: Annotated[int, Within(2, 64)] = 4
    """Hosts, a worker each."""
    most_seconds: Annotated[float, Within(1, 1e6)] = 600.0
    """Of a training; one that takes longer is stopped, and shown as far as it came."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training, as what it is."""

    mbps: float
    drop_rate: float
    way_name: str

    @property
    def way(self) -> _Way:
        return _WAYS[self.way_name]

    @property
    def name(self) -> str:
        return f"{exactly(self.mbps)}mbps-{exactly(self.drop_rate)}-{self.way_name}"


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, of_training = split_arguments(argv)
    config = read_command(TrainingConfig, "launch.bench training", own, TrainingConfig())
    if config.output_dir is None:
        refuse("output_dir", None, "a folder for the results")
    for name in sorted(
        {"output_dir", "algorithm", "message_dtype", "num_workers"} & names_given(of_training)
    ):
        not_allowed(name, None, "after --")
    if not of_training:
        requires("output_dir", config.output_dir, "flags of launch.train, after --")
    trainings = [
        parse(_flags(of_training, config.num_workers, way), way.network) for way in _WAYS.values()
    ]
    check_bed("training", None)
    find_source(trainings[0])
    check_can_write("output_dir", config.output_dir)
    runs = [
        _Run(mbps, drop_rate, name)
        for mbps in config.rates
        for drop_rate in config.drop_rates
        for name, way in _WAYS.items()
        if not way.killed or drop_rate == max(config.drop_rates)
    ]
    with only_writer(config.output_dir):
        todo = [each for each in runs if not _is_over(_folder(config, each))]
        if todo:
            with _hosts(config) as hosts:
                for number, each in enumerate(todo, 1):
                    print(f"[{number}/{len(todo)}] {each.name}", flush=True)
                    hosts.train(each, _folder(config, each), of_training, config.most_seconds)
        _report(config, runs, of_training)
    return 0


def _flags(of_training: Sequence[str], num_workers: int, way: _Way) -> list[str]:
    """Returns the flags of launch.train of a training."""
    return [*of_training, "--num-workers", str(num_workers), *way.flags]


def _folder(config: TrainingConfig, each: _Run) -> RunDirectory:
    assert config.output_dir is not None
    return RunDirectory(config.output_dir / each.name)


class Hosts:
    """The hosts of a bed, as `launch.hosts` sees them: by a command in the place of ssh.

    Attributes:
        flags: Of `launch.hosts`, that name them.
    """

    def __init__(self, bed: Bed, scratch: Path) -> None:
        """Writes what `launch.hosts` needs to find them.

        Args:
            bed: That is made, and stays.
            scratch: Folder for it.
        """
        self._bed, hostfile, ssh = bed, scratch / "hosts", scratch / "ssh"
        self.flags = ["--hostfile", str(hostfile), "--ssh", str(ssh)]
        names = [f"host-{host}" for host in range(bed.num_hosts)]
        hostfile.write_text("".join(f"{name}\n" for name in names))
        cases = [
            f'{name}) exec {shlex.join(bed.command(host, "sh", "-c"))} "$2";;\n'
            for host, name in enumerate(names)
        ]
        ssh.write_text(f'#!/bin/sh\ncase "$1" in\n{"".join(cases)}esac\n')
        ssh.chmod(0o755)

    def train(
        self, each: _Run, folder: RunDirectory, of_training: Sequence[str], most_seconds: float
    ) -> None:
        """Trains to the end, or for so long.

        Args:
            each: What to train.
            folder: For it; what is in there is deleted.
            of_training: Flags of launch.train.
            most_seconds: After which it is stopped.

        Raises:
            CommandError: It failed.
        """
        self._bed.set_link(Link(rate=1e6 * each.mbps, drop_rate=each.drop_rate))
        argv = [sys.executable, "-m", "launch.hosts", *self.flags, "--heartbeat-timeout", "120"]
        argv += ["--network", each.way.network]
        argv += ["--max-restarts", "1"] if each.way.network == "udp" else []
        argv += ["--", *_flags(of_training, self._bed.num_hosts, each.way)]
        argv += ["--output-dir", str(folder.path.absolute())]
        folder.clear()
        with subprocess.Popen(argv, env={**os.environ, "JAX_PLATFORMS": "cpu"}) as launcher:
            try:
                if each.way.killed:
                    self._kill_a_worker(launcher, folder)
                status = launcher.wait(most_seconds)
            except subprocess.TimeoutExpired:
                launcher.terminate()
                launcher.wait()
                status = 0
                write_text(folder.path / _STOPPED, f"after {most_seconds:g} s\n")
            except BaseException:
                launcher.terminate()
                raise
        if status:
            raise CommandError(f"{each.name}: expected a training, ended with status {status}")

    def _kill_a_worker(self, launcher: subprocess.Popen[bytes], folder: RunDirectory) -> None:
        """Waits for a share of the run, and kills worker 1."""
        # None but the one on its host: others may train on this machine.
        kill = 'exec pkill -KILL --ns $$ --nslist net -f "launch.udp worker --worker 1 "'
        while launcher.poll() is None:
            lines = folder.read_metrics()
            if lines and lines[-1]["epoch"] >= _KILL_AT * stored_config(folder.path).epochs:
                subprocess.run(self._bed.command(1, "sh", "-c", kill), check=True)
                return
            time.sleep(0.2)


def _is_over(folder: RunDirectory) -> bool:
    return folder.is_done or (folder.path / _STOPPED).exists()


@contextlib.contextmanager
def _hosts(config: TrainingConfig) -> Iterator[Hosts]:
    link = Link(rate=1e6 * max(config.rates))
    with tempfile.TemporaryDirectory() as scratch, Bed(config.num_workers, link) as bed:
        yield Hosts(bed, Path(scratch))


def _report(config: TrainingConfig, runs: Sequence[_Run], of_training: Sequence[str]) -> None:
    """Writes the table, its numbers and the picture, and prints the table."""
    assert config.output_dir is not None
    rows = [_row(each, _folder(config, each)) for each in runs]
    table = "\n".join(markdown_table(list(rows[0]), [list(row.values()) for row in rows]))
    print(table)
    write_text(config.output_dir / "table.md", f"{table}\n")
    write_results(config.output_dir / "results.json", "training", config, rows, of_training)
    _draw(config, runs, config.output_dir / "loss.png")


def _row(each: _Run, folder: RunDirectory) -> dict[str, Any]:
    lines = folder.read_metrics()
    last, stopped = (
        lines[-1],
        "" if folder.is_done else f", stopped at epoch {lines[-1]['epoch']:.2g}",
    )
    score = "-"
    if folder.is_done:
        summary = folder.read_summary()
        score = f"{summary['score'].replace('_', ' ')} {summary[summary['score']]:.4f}"
    return {
        "Mbps": f"{each.mbps:g}",
        "dropped": f"{each.drop_rate:.0%}",
        "training": each.way.title + stopped,
        "seconds": f"{_seconds(folder)[-1]:.0f}",
        "ms a step, median": f"{1e3 * _seconds_a_step(lines):.0f}",
        "training loss": f"{last.get('mean_model_train_loss', last['train_loss']):.4f}",
        "score": score,
        "delivered": f"{statistics.fmean(line['delivered_fraction'] for line in lines):.1%}",
    }


def _seconds(folder: RunDirectory) -> list[float]:
    """Returns when each line was written, in seconds since the first step began."""
    lines, config = folder.read_metrics(), stored_config(folder.path)
    first = lines[0]
    examples = first["step"] * config.num_workers * config.batch_size
    began = first["wall_seconds"] - examples / first["examples_per_second"]
    return [line["wall_seconds"] - began for line in lines]


def _seconds_a_step(lines: list[dict[str, Any]]) -> float:
    """Returns the median over the windows between lines."""
    return statistics.median(
        (after["wall_seconds"] - before["wall_seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
    )


def _draw(config: TrainingConfig, runs: Sequence[_Run], path: Path) -> None:
    """Draws training loss over time, a panel for each link."""
    settings = list(dict.fromkeys((each.mbps, each.drop_rate) for each in runs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(config.rates), 2.7 * len(config.drop_rates)))
        figure.set_layout_engine("constrained")
        grid = figure.subplots(len(config.drop_rates), len(config.rates), squeeze=False)
        for axes, (mbps, drop_rate) in zip(grid.T.flat, settings, strict=True):
            axes.set(title=f"{mbps:g} Mbps, {drop_rate:.0%} dropped", yscale="log")
            axes.set(xlabel="seconds of training", ylabel="training loss")
            for each in runs:
                if (each.mbps, each.drop_rate) == (mbps, drop_rate):
                    folder = _folder(config, each)
                    losses = [line["train_loss"] for line in folder.read_metrics()]
                    axes.plot(_seconds(folder), losses, label=each.way.title, **each.way.line)
            axes.set_xlim(left=0)
        handles, labels = grid[-1][0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2 if len(config.rates) > 1 else 1
        )
        figure.savefig(path, dpi=160)
