"""What can be chosen for a run: one frozen dataclass, its presets, and its typed command line."""

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import tyro

Preset = Literal["digits", "cifar10-resnet20", "cifar10-resnet110", "atis-lstm"]


class UsageError(Exception):
    """A command line that cannot be run; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train over a network that loses messages.

    n workers each take a local SGD step, then average their models block by block through a
    reduce-scatter and an all-gather in which every message may be lost.
    """

    preset: Preset = "digits"
    """Data, model and the defaults below; given first, it decides what they are."""
    algorithm: Literal["rps", "gradient-averaging", "all-reduce", "local"] = "rps"
    """What is averaged: models or gradients over the lossy network, models reliably, nothing."""
    num_workers: int = 16
    """Workers; each holds a model and a share of the data."""
    drop_rate: float = 0.1
    """Probability that a message is lost."""
    all_gather_drop_rate: float | None = None
    """The same for the all-gather, where it differs from the reduce-scatter."""
    packets: int | None = None
    """Packets a message is cut into, each lost by itself; None loses messages whole."""
    on_miss: Literal["own", "zero"] = "own"
    """Gradient averaging: what a worker applies where no average arrived."""
    assignment: Literal["random", "fixed"] = "random"
    """Which worker serves which block: drawn anew at each step, or always the same."""
    model_state: Literal["exchange", "local"] = "exchange"
    """Batch-norm statistics: averaged in the same exchange, or kept by each worker."""

    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 8
    """Examples a worker takes in each step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """The optimizer of the local step; its state stays with the worker."""
    learning_rate: float = 0.1
    """Step size, at its peak."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """Learning rate over time; step: a tenth after 1/2 and again after 3/4 of the epochs."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.0
    """L2 regularisation, added to the gradient."""
    clip_norm: float | None = None
    """Longest gradient that a worker applies."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's computation; parameters and averages are float32 always."""
    seed: int = 0
    """Decides the initial model, the shares of the data, its order, and every loss."""

    data_path: Path | None = None
    """File or folder of the data; the digits need none."""
    download: bool = False
    """Let CIFAR-10 be downloaded if it is not found."""
    label_skew: float | None = None
    """Dirichlet concentration of the workers' label shares, small is skewed; None is i.i.d."""

    output_dir: Path | None = None
    """The run's folder; by default a new one below runs/."""
    resume: bool = False
    """Go on with the run in --output-dir, from its newest checkpoint."""
    checkpoint_every: int = 5
    """Epochs between checkpoints; the last epoch has one always."""
    log_every: int = 50
    """Steps between lines of metrics; the end of an epoch has one always."""
    workers_per_device: int | None = None
    """Workers that share a device; by default as few as possible (on a CPU, one)."""


PRESETS: dict[str, TrainConfig] = {
    "digits": TrainConfig(preset="digits"),
    "cifar10-resnet20": TrainConfig(
        preset="cifar10-resnet20",
        epochs=160,
        learning_rate=0.1,
        schedule="step",
        weight_decay=1e-4,
        checkpoint_every=1,
    ),
    "cifar10-resnet110": TrainConfig(
        preset="cifar10-resnet110",
        epochs=160,
        learning_rate=0.1,
        schedule="step",
        weight_decay=1e-4,
        clip_norm=5.0,
        checkpoint_every=1,
    ),
    "atis-lstm": TrainConfig(
        preset="atis-lstm",
        epochs=20,
        batch_size=4,
        learning_rate=0.5,
        clip_norm=1.0,
    ),
}

# What may differ between a run and its continuation: nothing that decides the result.
MAY_CHANGE_ON_RESUME = (
    "resume",
    "output_dir",
    "data_path",
    "download",
    "checkpoint_every",
    "log_every",
    "workers_per_device",
)

CONFIG_FILE = "config.json"


def parse(argv: Sequence[str]) -> TrainConfig:
    """Returns the run that a command line asks for, checked as far as it can be without data.

    Raises:
        UsageError: The command line is no valid run.
        SystemExit: With status 0, after `--help`.
    """
    defaults = _defaults(argv)
    prog = "python -m launch.train"
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            config = tyro.cli(
                TrainConfig,
                prog=prog,
                args=list(argv),
                default=defaults,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(messages.getvalue())) from None
    check(config)
    if config.resume:
        _check_unchanged(config, defaults)
    return config


def check(config: TrainConfig) -> None:
    """Raises `UsageError` for a value that no run can have."""
    _expect("num_workers", config.num_workers, config.num_workers >= 1, "at least 1")
    for name in ("drop_rate", "all_gather_drop_rate"):
        rate = getattr(config, name)
        _expect(name, rate, rate is None or 0 <= rate <= 1, "a probability in [0, 1]")
    for name in ("epochs", "batch_size", "checkpoint_every", "log_every"):
        count = getattr(config, name)
        _expect(name, count, count >= 1, "at least 1")
    for name in ("packets", "workers_per_device"):
        count = getattr(config, name)
        _expect(name, count, count is None or count >= 1, "at least 1")
    rate = config.learning_rate
    _expect("learning_rate", rate, 0 < rate < math.inf, "a positive number")
    _expect("momentum", config.momentum, 0 <= config.momentum < 1, "a number in [0, 1)")
    decay = config.weight_decay
    _expect("weight_decay", decay, 0 <= decay < math.inf, "a number of at least 0")
    for name in ("clip_norm", "label_skew"):
        value = getattr(config, name)
        _expect(name, value, value is None or 0 < value < math.inf, "a positive number")
    _expect("seed", config.seed, 0 <= config.seed < 2**32, "an integer in [0, 2^32)")

    per_device = config.workers_per_device
    if per_device is not None and config.num_workers % per_device:
        _refuse("workers_per_device", per_device, f"a divisor of {config.num_workers} workers")
    if config.preset == "digits" and config.data_path is not None:
        _refuse("data_path", config.data_path, "nothing: the digits come with scikit-learn")
    if config.preset == "atis-lstm" and config.data_path is None:
        _refuse("data_path", None, "the folder of ATIS: train/ and test/, with seq.in, seq.out")
    if config.download and not config.preset.startswith("cifar10"):
        _refuse("download", True, "a CIFAR-10 preset; no other data is downloaded")
    if config.download and config.data_path is not None:
        _refuse("download", True, "no --data-path beside it")
    if config.resume and config.output_dir is None:
        _refuse("resume", True, "--output-dir, the folder of the run to go on with")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration as JSON values."""
    values = dataclasses.asdict(config)
    return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}


def from_json(values: dict[str, Any]) -> TrainConfig:
    """Returns the configuration that `to_json` wrote."""
    paths = {
        key: Path(values[key]) for key in ("data_path", "output_dir") if values.get(key) is not None
    }
    return TrainConfig(**{**values, **paths})


def stored_config(output_dir: Path) -> TrainConfig:
    """Returns the configuration of the run in a folder.

    Raises:
        UsageError: The folder holds no run, or its configuration cannot be read.
    """
    path = output_dir / CONFIG_FILE
    try:
        return from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UsageError(f"--resume: {path} is missing; expected the folder of a run") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--resume: {path} cannot be read ({error})") from None


def fail(error: Exception | str) -> NoReturn:
    """Ends the program as a bad command line does: one line on stderr, status 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


def _defaults(argv: Sequence[str]) -> TrainConfig:
    """Returns the values of all flags that are not given: the preset's, or the run's to resume."""
    values = dict.fromkeys(("--preset", "--output-dir"), "")
    for index, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag in values:
            values[flag] = value or (argv[index + 1] if index + 1 < len(argv) else "")
    if "--resume" in argv and values["--output-dir"] and not {"-h", "--help"} & set(argv):
        stored = stored_config(Path(values["--output-dir"]))
        return dataclasses.replace(stored, resume=False)
    preset = values["--preset"] or "digits"
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _check_unchanged(config: TrainConfig, stored: TrainConfig) -> None:
    for field in dataclasses.fields(TrainConfig):
        old, new = getattr(stored, field.name), getattr(config, field.name)
        if field.name not in MAY_CHANGE_ON_RESUME and old != new:
            _refuse(field.name, new, f"{old}, as the run in {config.output_dir} has it")


def _expect(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        _refuse(name, value, expected)


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    flag = "--" + name.replace("_", "-")
    shown = "" if value is True or value is None else f" {value}"
    raise UsageError(f"{flag}{shown}: expected {expected}")


def _one_line(boxed: str) -> str:
    """Returns the message of tyro's box, which precedes a rule and advice on `--help`."""
    lines: list[str] = []
    for line in boxed.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.startswith("──") and lines:
            break
        if text and not line.startswith("╭"):
            lines.append(text)
    return " ".join(lines) or "the command line cannot be read"


def default_output_dir(config: TrainConfig, now: str) -> Path:
    """Returns a new folder's name below runs/: what the run is, and when it began."""
    base = Path("runs") / f"{config.preset}-{config.algorithm}-{now}"
    path, suffix = base, 2
    while os.path.lexists(path):
        path, suffix = base.with_name(f"{base.name}-{suffix}"), suffix + 1
    return path
