"""Trains over a network that loses messages: `python -m launch.train --help`.

    python -m launch.train                                  the digits, offline, in about a minute
    python -m launch.train --preset atis-lstm --data-path ATIS
    python -m launch.train --preset cifar10-resnet20 --data-path CIFAR --drop-rate 0.01

Reads as it runs: what can be wrong with a command line is found before JAX is started.
"""

import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime

from data import DataError, Source, atis, cifar10, digits
from launch.command_line import UsageError, fail
from launch.config import TrainConfig, default_output_dir, parse
from launch.devices import start_devices
from launch.run_folder import RunFolder

FAILED = 1
"""Exit status when files cannot be read or written."""
DIVERGED = 3
"""Exit status when the training left the finite numbers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be said, not even when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _run(argv: Sequence[str]) -> int:
    try:
        config = parse(argv)
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = RunFolder(config.output_dir or default_output_dir(config, now))
        if not config.resume:
            folder.check_is_free()
        source = find_data(config)
        _check_enough(config, source.num_train)
    except DataError as error:
        fail(f"--data-path {error}" if config.data_path else error)
    except UsageError as error:
        fail(error)

    start_devices(config.num_workers, config.workers_per_device)
    from launch.checkpoints import CheckpointError
    from launch.training import Diverged, Stopped, train

    try:
        summary = train(config, source, folder)
    except DataError as error:
        fail(f"--data-path {error}" if config.data_path else error)
    except UsageError as error:
        fail(error)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return DIVERGED
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    _print_summary(summary, folder)
    return 0


def find_data(config: TrainConfig) -> Source:
    """Finds the data of a preset, checked and not loaded yet."""
    if config.preset == "digits":
        return digits.find()
    if config.preset == "atis-lstm":
        assert config.data_path is not None  # as the command line was checked for
        return atis.find(config.data_path)
    return cifar10.find(config.data_path, download=config.download)


def _check_enough(config: TrainConfig, num_train: int) -> None:
    if config.num_workers > num_train:
        raise UsageError(
            f"--num-workers {config.num_workers}: expected at most {num_train}, the number of "
            "training examples"
        )
    most = 2**31 // num_train
    if config.epochs > most:
        raise UsageError(f"--epochs {config.epochs}: expected at most {most}")
    smallest = num_train // config.num_workers
    if config.batch_size > smallest:
        raise UsageError(
            f"--batch-size {config.batch_size}: expected at most {smallest}, the training examples "
            f"of each of {config.num_workers} workers"
        )


def _print_summary(summary: dict, folder: RunFolder) -> None:
    rows = {
        "training loss": f"{summary['mean_model_train_loss']:.4f} (mean model, all examples)",
        summary["score"].replace("_", " "): f"{summary[summary['score']]:.4f} (mean model)",
        "consensus distance": f"{summary['consensus_distance']:.3g}",
        "messages delivered": f"{summary['delivered_fraction']:.1%}",
        "wall time": f"{summary['wall_seconds']:.0f} s",
        "results": f"{folder.path}{os.sep}",
    }
    print()
    for name, value in rows.items():
        print(f"{name:<20}{value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
