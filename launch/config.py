"""What can be chosen for a run: one frozen dataclass, its presets, and its typed command line."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from launch.cli.command_line import (
    Seconds,
    Seed,
    UsageError,
    Within,
    check_values,
    expect,
    not_allowed,
    optional,
    read_command,
    refuse,
    requires,
)
from launch.distributed.rendezvous import split_address

PROG = "launch.train"

Preset = Literal["digits", "cifar10-resnet20", "cifar10-resnet110", "atis-lstm"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train over a network that loses messages.

    Each worker takes a local step; then all average their models block by block.
    """

    preset: Preset = "digits"
    """Data, model, and the defaults of all other flags; --help shows those of this preset."""
    algorithm: Literal["rps", "gradient-averaging", "all-reduce", "local"] = "rps"
    """What is averaged: models or gradients with loss, models without loss, or nothing."""
    num_workers: int = 16
    """How many workers there are; each holds a model and a share of the data."""
    channel: Literal["bernoulli", "trace"] = "bernoulli"
    """Where loss comes from: each message lost by chance, or as in a trace."""
    drop_rate: Annotated[float | None, optional("FLOAT", "as in the trace")] = 0.1
    """Probability that a message is lost."""
    all_gather_drop_rate: Annotated[float | None, optional("FLOAT", "the same")] = None
    """The same in the all-gather, where it differs from the reduce-scatter."""
    packets: Annotated[int | None, optional("INT", "messages are lost whole")] = None
    """Cut each message into so many packets, each lost by itself."""
    trace: Annotated[Path | None, optional("PATH", "none")] = None
    """File of recorded losses, replayed step by step and then anew; see rps_jax/trace.py."""
    trace_sha256: Annotated[str | None, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """Digest of that file, which a resumed run must find unchanged."""
    on_miss: Literal["own", "zero"] = "own"
    """What gradient-averaging applies where no average arrived: the own gradient, or none."""
    assignment: Literal["random", "fixed"] = "random"
    """Which worker averages which block: drawn anew at each step, or always the same."""
    model_state: Literal["exchange", "local"] = "exchange"
    """Batch-norm statistics: averaged in the same exchange, or kept by each worker."""

    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 8
    """Examples that a worker takes in each step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the local step; its state stays with the worker."""
    learning_rate: float = 0.1
    """Step size, before the schedule lowers it."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """How the step size goes down; step: to a tenth after 1/2, and again after 3/4 of the run."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.0
    """L2 regularisation, added to the gradient."""
    clip_norm: Annotated[float | None, optional("FLOAT", "None")] = None
    """Largest norm of a gradient; longer ones are shortened to it. None: they are not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's computation; parameters and averages are always float32."""
    seed: Seed = 0
    """Decides the initial model, the shares of the data, its order, and every loss."""

    data_path: Annotated[Path | None, optional("PATH", "the digits need none")] = None
    """File or folder of the data."""
    download: bool = False
    """Let CIFAR-10 be downloaded where it is not found."""
    label_skew: Annotated[
        float | None,
        optional("FLOAT", "i.i.d. shares"),
        Within(1e-6, 1e6, "a positive number, in [10^-6, 10^6]"),
    ] = None
    """Dirichlet concentration of the labels in the workers' shares; small is skewed."""

    output_dir: Annotated[Path | None, optional("PATH", "a new folder in runs/")] = None
    """Folder of the run's results."""
    resume: bool = False
    """Go on with the run in --output-dir, from its newest checkpoint."""
    checkpoint_every: int = 5
    """Epochs between checkpoints; there is always one after the last epoch."""
    log_every: int = 50
    """Steps between lines of metrics; there is always one after an epoch."""
    workers_per_device: Annotated[int | None, optional("INT", "as few as possible")] = None
    """How many workers share a device; a CPU is split into as many devices as needed."""
    allow_resize: bool = False
    """Let a run go on with another number of workers: new ones start from the mean model."""

    coordinator: Annotated[str | None, optional("HOST:PORT", "SLURM or MPI, or alone")] = None
    """Address of process 0, where several processes are to meet."""
    num_processes: Annotated[int | None, optional("INT", "those of SLURM or MPI, or one")] = None
    """How many processes share the workers."""
    process_id: Annotated[int | None, optional("INT", "that of SLURM or MPI, or 0")] = None
    """Which of them this is."""
    start_timeout: Seconds = 60.0
    """Seconds to wait for the other processes."""


LOSSY = ("rps", "gradient-averaging")
"""The algorithms that use the lossy network."""

_CIFAR10_RESNET20 = TrainConfig(
    preset="cifar10-resnet20",
    epochs=160,
    learning_rate=0.1,
    schedule="step",
    weight_decay=1e-4,
    checkpoint_every=1,
)

PRESETS: dict[str, TrainConfig] = {
    "digits": TrainConfig(preset="digits"),
    "cifar10-resnet20": _CIFAR10_RESNET20,
    "cifar10-resnet110": dataclasses.replace(
        _CIFAR10_RESNET20, preset="cifar10-resnet110", clip_norm=5.0
    ),
    "atis-lstm": TrainConfig(
        preset="atis-lstm",
        epochs=20,
        batch_size=4,
        learning_rate=0.5,
        clip_norm=1.0,
    ),
}

PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")
"""Which process this is: of no consequence for the run."""

NOT_OF_THE_RUN = (*PROCESS_FLAGS, "start_timeout", "resume", "allow_resize")
"""What the folder of a run does not keep."""

# What may differ between a run and its continuation: nothing that decides the result.
MAY_CHANGE_ON_RESUME = (
    *NOT_OF_THE_RUN,
    "output_dir",
    "data_path",
    "trace",
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
    # The first reading is for the flags that decide the defaults of all others.
    helps = {"-h", "--help"}
    asked = read_command(TrainConfig, PROG, [x for x in argv if x not in helps], PRESETS["digits"])
    defaults = PRESETS[asked.preset]
    if asked.channel == "trace":
        defaults = dataclasses.replace(defaults, drop_rate=None)
    if helps.isdisjoint(argv) and asked.resume and asked.output_dir is not None:
        defaults = stored_config(asked.output_dir)
    config = read_command(TrainConfig, PROG, argv, defaults)
    if config.trace is not None:
        config = dataclasses.replace(config, trace_sha256=_sha256(config.trace))
    if config.resume and config.output_dir is not None:
        _check_unchanged(config, defaults)
    check(config)
    return config


def check(config: TrainConfig) -> None:
    """Raises `UsageError` for a value that no run can have."""
    check_values(config)
    expect("num_workers", config.num_workers, config.num_workers >= 1, "at least 1")
    if config.channel == "trace":
        _check_trace(config)
    else:
        if config.trace is not None:
            requires("trace", config.trace, "--channel trace")
        expect("drop_rate", "None", config.drop_rate is not None, "a probability in [0, 1]")
    for name in ("drop_rate", "all_gather_drop_rate"):
        rate = getattr(config, name)
        expect(name, rate, rate is None or 0 <= rate <= 1, "a probability in [0, 1]")
    for name in ("epochs", "batch_size", "checkpoint_every", "log_every"):
        count = getattr(config, name)
        expect(name, count, count >= 1, "at least 1")
    for name in ("packets", "workers_per_device"):
        count = getattr(config, name)
        expect(name, count, count is None or count >= 1, "at least 1")
    rate = config.learning_rate
    expect("learning_rate", rate, 0 < rate < math.inf, "a positive number")
    expect("momentum", config.momentum, 0 <= config.momentum < 1, "a number in [0, 1)")
    decay = config.weight_decay
    expect("weight_decay", decay, 0 <= decay < math.inf, "a number of at least 0")
    norm = config.clip_norm
    expect("clip_norm", norm, norm is None or 0 < norm < math.inf, "a positive number")

    if config.on_miss != "own" and config.algorithm != "gradient-averaging":
        requires("on_miss", config.on_miss, "--algorithm gradient-averaging")
    for name in ("all_gather_drop_rate", "packets"):
        if getattr(config, name) is not None and config.algorithm not in LOSSY:
            refuse(name, getattr(config, name), f"an algorithm with loss: {' or '.join(LOSSY)}")
    per_device = config.workers_per_device
    if per_device is not None and config.num_workers % per_device:
        refuse("workers_per_device", per_device, f"a divisor of {config.num_workers} workers")
    if config.preset == "digits" and config.data_path is not None:
        refuse("data_path", config.data_path, "nothing: the digits come with scikit-learn")
    if config.preset == "atis-lstm" and config.data_path is None:
        refuse("data_path", None, "the folder of ATIS: train/ and test/, with seq.in, seq.out")
    if config.download and not config.preset.startswith("cifar10"):
        refuse("download", True, "a CIFAR-10 preset; no other data is downloaded")
    if config.download and config.data_path is not None:
        not_allowed("download", True, "beside --data-path")
    if config.resume and config.output_dir is None:
        requires("resume", True, "--output-dir, the folder of the run to go on with")
    if config.allow_resize and not config.resume:
        requires("allow_resize", True, "--resume")
    _check_process(config)


def _check_process(config: TrainConfig) -> None:
    given = [name for name in PROCESS_FLAGS if getattr(config, name) is not None]
    for name in PROCESS_FLAGS:
        if given and name not in given:
            flags = ", ".join("--" + flag.replace("_", "-") for flag in PROCESS_FLAGS)
            refuse(name, None, f"all of {flags}, or none")
    expect("start_timeout", config.start_timeout, config.start_timeout > 0, "a positive number")
    if not given:
        return
    assert config.coordinator is not None
    assert config.num_processes is not None
    assert config.process_id is not None
    try:
        split_address(config.coordinator)
    except ValueError:
        refuse("coordinator", config.coordinator, "HOST:PORT")
    processes, workers = config.num_processes, config.num_workers
    divides = processes >= 1 and workers % processes == 0
    expect("num_processes", processes, divides, f"a divisor of {workers} workers")
    mine = 0 <= config.process_id < processes
    expect("process_id", config.process_id, mine, f"0 to {processes - 1}")
    per_device = config.workers_per_device
    if per_device is not None and workers // processes % per_device:
        each = workers // processes
        refuse("workers_per_device", per_device, f"a divisor of the {each} workers a process")


def _check_trace(config: TrainConfig) -> None:
    if config.trace is None:
        requires("channel", config.channel, "--trace, a file of recorded losses")
    for name in ("drop_rate", "all_gather_drop_rate", "packets"):
        if getattr(config, name) is not None:
            not_allowed(name, getattr(config, name), "beside --channel trace, which decides that")
    if config.algorithm not in LOSSY:
        refuse("channel", config.channel, f"an algorithm with loss: {' or '.join(LOSSY)}")


def _sha256(trace: Path) -> str:
    try:
        with trace.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        refuse("trace", trace, f"a file that can be read ({error.strerror})")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Returns what the folder of a run keeps of its configuration, as JSON values."""
    values = dataclasses.asdict(config)
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in values.items()
        if key not in NOT_OF_THE_RUN
    }


def from_json(values: dict[str, Any]) -> TrainConfig:
    """Returns the configuration that `to_json` wrote."""
    paths = {
        key: Path(values[key])
        for key in ("data_path", "trace", "output_dir")
        if values.get(key) is not None
    }
    return TrainConfig(**{**values, **paths})


def stored_config(output_dir: Path) -> TrainConfig:
    """Returns the configuration of the run in a folder.

    Raises:
        UsageError: The folder holds no run, or its configuration cannot be read.
    """
    path = output_dir / CONFIG_FILE
    try:
        config = from_json(json.loads(path.read_text()))
        check(config)
        return config
    except FileNotFoundError:
        raise UsageError(f"--resume: {path} is missing; expected the folder of a run") from None
    except (OSError, ValueError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(f"--resume: {path} cannot be read ({error})") from None


def _check_unchanged(config: TrainConfig, stored: TrainConfig) -> None:
    for field in dataclasses.fields(TrainConfig):
        old, new = getattr(stored, field.name), getattr(config, field.name)
        if field.name in MAY_CHANGE_ON_RESUME or old == new:
            continue
        if field.name == "trace_sha256":
            refuse("trace", config.trace, f"the trace that {config.output_dir} began with")
        expected = f"{old}, as the run in {config.output_dir} has it"
        if field.name == "num_workers":
            if config.allow_resize:
                continue
            expected += " (--allow-resize goes on with another number)"
        refuse(field.name, new, expected)


def default_output_dir(config: TrainConfig, now: str) -> Path:
    """Returns a new folder's name below runs/: what the run is, and when it began."""
    base = Path("runs") / f"{config.preset}-{config.algorithm}-{now}"
    path, suffix = base, 2
    while os.path.lexists(path):
        path, suffix = base.with_name(f"{base.name}-{suffix}"), suffix + 1
    return path
