"""Shows a run in TensorBoard: `python -m launch.tensorboard --output-dir runs/x`.

Reads the metrics that every run leaves behind, on one device, on many or over UDP, and writes them
as TensorBoard has them, into `tensorboard/` of the run's folder. The training does not wait for it.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from launch.cli.command_line import UsageError, optional, read_command
from launch.cli.commands import entry_point
from launch.config import stored_config
from launch.json_objects import is_number
from launch.reports.curves import STYLE
from launch.reports.link_pictures import draw_arrivals, draw_bursts, draw_heat_maps
from launch.reports.links import ARRIVALS, BURSTS, BY_LINK, lists_of_links
from launch.trainer.run_directory import RunDirectory
from launch.trainer.writing import check_can_write

_POLL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class TensorBoardConfig:
    """Write the metrics of a run for `tensorboard --logdir FOLDER`."""

    output_dir: Annotated[Path | None, optional("PATH", "none")] = None
    """Folder of the run."""
    follow: bool = False
    """Go on while the run trains, until it ends or Ctrl-C."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(TensorBoardConfig, "launch.tensorboard", argv, TensorBoardConfig())
    if config.output_dir is None:
        raise UsageError("--output-dir: expected the folder of a run")
    stored_config(config.output_dir)
    check_can_write("output_dir", config.output_dir)
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UsageError("expected tensorboardX: pip install -e '.[tensorboard]'") from None

    run, folder = RunDirectory(config.output_dir), config.output_dir / "tensorboard"
    with contextlib.ExitStack() as open_writer, contextlib.suppress(KeyboardInterrupt):
        written: list[dict[str, Any]] | None = None
        while True:
            ended = not config.follow or run.summary.exists()
            lines = run.read_metrics()
            num_workers = stored_config(config.output_dir).num_workers  # It may be resized.
            # A run that goes on from a checkpoint takes lines back: begin anew.
            if written is None or lines[: len(written)] != written:
                open_writer.close()
                for events in folder.glob("events.out.tfevents.*"):
                    events.unlink()
                writer = open_writer.enter_context(SummaryWriter(str(folder)))
                written = []
            for line in lines[len(written) :]:
                _write(writer, line, num_workers)
            writer.flush()
            written = lines
            if ended:
                break
            time.sleep(_POLL_SECONDS)
    print(f"tensorboard --logdir {folder}")
    return 0


def _write(writer: Any, line: dict[str, Any], num_workers: int) -> None:
    """Writes a line of metrics: numbers as scalars, lists as pictures."""
    step = line["step"]
    for name, value in line.items():
        if isinstance(value, int | float) and name != "step":
            writer.add_scalar(name, value, step)

    draws: dict[str, Callable[[Any, np.ndarray], None]] = {
        BY_LINK: lambda axes, values: draw_heat_maps(axes, values, num_workers),
        ARRIVALS: lambda axes, values: draw_arrivals(axes, values, num_workers),
        BURSTS: draw_bursts,
    }
    for name, values in (lists_of_links(line, num_workers) or {}).items():
        columns = 2 if name == BY_LINK else 1
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.0 * columns, 3.3), layout="constrained")
            draws[name](figure.subplots(1, columns), values)
            writer.add_figure(name, figure, step, close=False)
    distances = line.get("distances")
    # A line of JSON may say anything.
    if isinstance(distances, list) and distances and all(map(is_number, distances)):
        values = np.array(distances, float)
        if np.isfinite(values).all():
            writer.add_histogram("distances", values, step)


if __name__ == "__main__":
    sys.exit(main())
