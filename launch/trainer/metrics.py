"""What is kept of a run while it trains: its measurements, and at its end a summary."""

import platform
import time
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from launch.channels import CHANNELS
from launch.cli.command_line import UsageError
from launch.config import LOSSY, TrainConfig
from launch.reports.curves import draw_curves
from launch.tasks import Task
from launch.trainer.json_files import write_json
from launch.trainer.run_directory import EPOCH_DIGITS, RunDirectory

Summary = dict[str, Any]


class Window:
    """What happened in the steps since the last line of metrics.

    Attributes:
        steps: `[loss, delivered fraction]` of each; a checkpoint holds them too.
    """

    def __init__(self, steps: list[list[float]]) -> None:
        """Goes on from the steps of an earlier part of the run."""
        self.steps = steps
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the throughput whatever happened before now."""
        self._timed_from, self._began = len(self.steps), time.perf_counter()

    def add(self, loss: float, delivered: float) -> None:
        """Adds a step."""
        self.steps.append([loss, delivered])

    def averages(self, examples_per_step: int) -> dict[str, float]:
        """Returns the means over the steps, and the throughput."""
        examples = (len(self.steps) - self._timed_from) * examples_per_step
        loss, delivered = np.mean(self.steps, axis=0)
        return {
            "train_loss": float(loss),
            "delivered_fraction": float(delivered),
            "examples_per_second": round(examples / (time.perf_counter() - self._began), 1),
        }


class RunMetrics:
    """A run's folder, and what is about to be written there.

    Attributes:
        config: Of the run.
        folder: Of the run.
        window: The steps since the last line of metrics.
    """

    def __init__(self, config: TrainConfig, folder: RunDirectory) -> None:
        """Has measured nothing yet; writes nothing."""
        self.config, self.folder = config, folder
        self.window = Window([])

    def line(self, step: int, epoch: float, measured: dict[str, float]) -> dict[str, Any]:
        """Returns a line of metrics, and begins the next window.

        Args:
            step: Steps taken.
            epoch: The same in epochs.
            measured: What was measured of the models after this step.
        """
        examples_per_step = self.config.num_workers * self.config.batch_size
        averages = self.window.averages(examples_per_step)
        self.window = Window([])
        return {"step": step, "epoch": round(epoch, EPOCH_DIGITS), **averages, **measured}

    def summarise(self, step: int, task: Task, data: str, devices: str, seconds: float) -> Summary:
        """Writes the summary: the run is done.

        Args:
            step: The last.
            task: What was learned.
            data: Its description.
            devices: The same of what it ran on.
            seconds: How long it took.

        Raises:
            UsageError: The metrics of the last step are not in the folder.
        """
        lines = self.folder.read_metrics()
        if not lines or lines[-1]["step"] != step:
            raise UsageError(f"{self.folder.metrics}: expected the metrics of step {step:,} in it")
        config = self.config
        summary = {
            **lines[-1],
            "score": task.score,
            "algorithm": config.algorithm,
            "drop_rate": config.drop_rate if config.algorithm in LOSSY else None,
            "num_workers": config.num_workers,
            "model_state": config.model_state,
            "data": data,
            "wall_seconds": round(seconds, 2),
            "devices": devices,
            "versions": {
                "python": platform.python_version(),
                "jax": jax.__version__,
                "rps_jax": rps.__version__,
            },
        }
        write_json(self.folder.summary, summary)
        return summary

    def draw(self, task: Task, data: str) -> None:
        """Draws the picture."""
        title = f"{task.model_name} on {data}: {setting(self.config)}"
        draw_curves(self.folder.read_metrics(), task.score, title, self.folder.curves)


def setting(config: TrainConfig) -> str:
    """Returns what a run averages and drops, for people."""
    workers = "1 worker" if config.num_workers == 1 else f"{config.num_workers} workers"
    if config.algorithm not in LOSSY:
        return f"{workers}, {config.algorithm}"
    dropped = CHANNELS[config.channel].describe(config)
    return f"{workers}, {config.algorithm}, {dropped}"
