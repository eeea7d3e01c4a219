"""What can be chosen for a run: one frozen dataclass, its presets, and its typed command line."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from launch.channels import CHANNELS, ChannelFlags
from launch.cli.command_line import Seed, UsageError, Within, optional, read_command, refuse
from launch.cli.fields import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    Mark,
    fields_of,
    marked,
    names_given,
)
from launch.config_checks import check
from launch.config_file import CONFIG_FILE, check_unchanged, deciding, from_json
from launch.rules import LOSSY, RuleFlags, make_rule
from launch.tasks import TASKS
from rps_jax.draw import Assignment
from rps_jax.rules import RULES, AverageModels
from rps_jax.train_state import ModelStatePolicy

PROG = "launch.train"

NetworkName = Literal["collectives", "udp"]
ScheduleName = Literal["constant", "cosine", "step"]

if TYPE_CHECKING:
    PresetName = str
    ChannelName = str
    Algorithm = str
    LossyAlgorithm = str
else:
    PresetName = Literal[tuple(TASKS)]
    ChannelName = Literal[tuple(CHANNELS)]
    Algorithm = Literal[tuple(RULES)]
    LossyAlgorithm = Literal[LOSSY]


@dataclasses.dataclass(frozen=True)
class _Experiment:
    preset: PresetName = "digits"
    """Data, model, and the defaults of all other flags; --help shows those of this preset."""
    algorithm: Algorithm = "rps"
    """What is averaged, and over what: a rule of rps_jax/rules."""
    num_workers: Annotated[int, AT_LEAST_1] = 16
    """How many workers there are; each holds a model and a share of the data."""
    channel: ChannelName = "bernoulli"
    """Which messages are dropped; see rps_jax/channels."""


_OfOneRun = Annotated[
    Path | None, optional("PATH", "none"), Mark.NOT_STORED, Mark.MAY_DIFFER, Mark.OF_ONE_RUN
]
"""A file or folder for what is seen of a run."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(ChannelFlags, RuleFlags, _Experiment):
    """Train over a network that drops messages.

    Each worker takes a local step; then all average their models block by block.
    """

    assignment: Assignment = "random"
    """Which worker averages which block: drawn anew at each step, or always the same."""
    model_state: ModelStatePolicy = "exchange"
    """Batch-norm statistics: averaged in the same exchange, or kept by each worker."""

    epochs: Annotated[int, AT_LEAST_1] = 30
    """Passes over the training data."""
    batch_size: Annotated[int, AT_LEAST_1] = 8
    """Examples that a worker takes in each step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the local step; its state stays with the worker."""
    learning_rate: Annotated[float, POSITIVE] = 0.1
    """Step size, before the schedule lowers it."""
    schedule: ScheduleName = "cosine"
    """How the step size goes down; step: to a tenth after 1/2, and again after 3/4 of the run."""
    momentum: Annotated[float, Within(0, math.nextafter(1, 0), "a number in [0, 1)")] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """L2 regularisation, added to the gradient."""
    clip_norm: Annotated[float | None, optional("FLOAT", "None"), POSITIVE] = None
    """Largest norm of a gradient; longer ones are shortened to it. None: they are not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's computation; parameters and averages are always float32."""
    seed: Seed = 0
    """Decides the initial model, the shares of the data, its order, and every drop."""

    network: Annotated[NetworkName, tyro.conf.Fixed, tyro.conf.Suppress] = "collectives"
    """What carries the blocks; launchers decide it."""

    data_path: Annotated[
        Path | None, optional("PATH", "the digits need none"), Mark.MAY_CHANGE, Mark.MAY_DIFFER
    ] = None
    """File or folder of the data."""
    download: Annotated[bool, Mark.MAY_CHANGE, Mark.MAY_DIFFER] = False
    """Let CIFAR-10 be downloaded where it is not found."""
    augment: bool = False
    """Crop and flip training images at random."""
    label_skew: Annotated[
        float | None,
        optional("FLOAT", "i.i.d. shares"),
        Within(1e-6, 1e6, "a positive number, in [10^-6, 10^6]"),
    ] = None
    """Dirichlet concentration of the labels in the workers' shares; small is skewed."""

    output_dir: Annotated[
        Path | None, optional("PATH", "a new folder in runs/"), Mark.MAY_CHANGE
    ] = None
    """Folder of the run's results."""
    resume: Annotated[bool, Mark.NOT_STORED] = False
    """Go on with the run in --output-dir, from its newest checkpoint."""
    auto_resume: Annotated[bool, Mark.NOT_STORED] = False
    """Go on with the run in --output-dir if it holds one, begin one there otherwise."""
    checkpoint_every: Annotated[int, AT_LEAST_1, Mark.MAY_CHANGE] = 5
    """Epochs between checkpoints; there is always one after the last epoch."""
    score_workers_every: Annotated[int, AT_LEAST_1, Mark.MAY_CHANGE] = 10
    """Epochs between scores of each worker's own model; there are always some after the last."""
    log_every: Annotated[int, AT_LEAST_1, Mark.MAY_CHANGE] = 50
    """Steps between lines of metrics; there is always one after an epoch."""
    workers_per_device: Annotated[
        int | None,
        optional("INT", "as few as possible"),
        AT_LEAST_1,
        Mark.MAY_CHANGE,
        Mark.NOT_OVER_UDP,
    ] = None
    """How many workers share a device; a CPU is split into as many devices as needed."""
    record: _OfOneRun = None
    """File for the drops of the run: a trace, which --channel trace replays."""
    profile: Annotated[_OfOneRun, Mark.NOT_OVER_UDP] = None
    """Folder for a profile of ten steps, for TensorBoard or ui.perfetto.dev."""
    allow_resize: Annotated[bool, Mark.NOT_STORED, Mark.NOT_OVER_UDP] = False
    """Let a run go on with another number of workers: new ones start from the mean model."""

    coordinator: Annotated[
        str | None,
        optional("HOST:PORT", "SLURM or MPI, or alone"),
        Mark.OF_PROCESS,
        Mark.MAY_DIFFER,
    ] = None
    """Address of process 0, where several processes are to meet."""
    num_processes: Annotated[
        int | None, optional("INT", "those of SLURM or MPI, or one"), Mark.OF_PROCESS
    ] = None
    """How many processes share the workers."""
    process_id: Annotated[
        int | None,
        optional("INT", "that of SLURM or MPI, or 0"),
        Mark.OF_PROCESS,
        Mark.MAY_DIFFER,
    ] = None
    """Which of them this is."""
    start_timeout: Annotated[
        float, Within(1e-3, 1e7, "seconds, in [0.001, 10^7]"), Mark.NOT_STORED, Mark.MAY_DIFFER
    ] = 60.0
    """Seconds to wait for the other processes."""


def simulates_drops(config: TrainConfig) -> bool:
    """Returns whether a channel drops messages of a run."""
    return config.algorithm in LOSSY and config.network == "collectives"


def records_steps(config: TrainConfig) -> bool:
    """Returns whether each step of the run says what arrived; over UDP, workers report it."""
    return config.record is not None and config.network == "collectives"


def predicts_distance(config: TrainConfig) -> bool:
    """Returns whether theory says how far drops set the workers of a run apart.

    It does of models, and of servers that leave equal models equal.
    """
    rule = make_rule(config)
    settles = isinstance(rule, AverageModels) and rule.server in ("received", "stale")
    return simulates_drops(config) and settles


PRESETS: dict[str, TrainConfig] = {
    name: TrainConfig(preset=name, **task.defaults) for name, task in TASKS.items()
}
"""The defaults of all flags, by preset."""

PROCESS_FLAGS = marked(TrainConfig, Mark.OF_PROCESS)
ONE_RUN_FLAGS = marked(TrainConfig, Mark.OF_ONE_RUN, Mark.OF_PROCESS)
"""Those that commands which train many runs do not take."""


def parse(argv: Sequence[str], network: NetworkName = "collectives") -> TrainConfig:
    """Returns the run that a command line asks for, checked as far as it can be without data.

    Args:
        argv: The arguments.
        network: What is to carry the blocks.

    Raises:
        UsageError: The command line is no valid run.
        SystemExit: With status 0, after `--help`.
    """
    # The first reading is for the flags that decide the defaults of all others.
    helps = {"-h", "--help"}
    asked = read_command(TrainConfig, PROG, [x for x in argv if x not in helps], PRESETS["digits"])
    if asked.auto_resume and asked.output_dir is not None:
        begun = os.path.lexists(asked.output_dir / CONFIG_FILE)
        asked = dataclasses.replace(asked, resume=asked.resume or begun)
    defaults = _defaults(asked)
    if helps.isdisjoint(argv) and asked.resume and asked.output_dir is not None:
        defaults = stored_config(asked.output_dir)
        if defaults.network != network:
            expected = f"a run over {network}, found one over {defaults.network}"
            refuse("output_dir", asked.output_dir, f"{expected} (--network of launch.local)")
    config = read_command(TrainConfig, PROG, argv, defaults)
    config = dataclasses.replace(config, resume=asked.resume, network=network)
    config = CHANNELS[config.channel].complete(config)
    if config.resume and config.output_dir is not None:
        check_unchanged(config, deciding(defaults), f"the run in {config.output_dir}")
    check(config, names_given(argv))
    return config


def _defaults(asked: TrainConfig) -> TrainConfig:
    """Returns the defaults of a preset; those of other channels' flags say that there is none."""
    mine = fields_of(CHANNELS[asked.channel].flags)
    others = {k: v.absent for k, v in fields_of(ChannelFlags).items() if k not in mine}
    return dataclasses.replace(PRESETS[asked.preset], **others)


def stored_config(output_dir: Path) -> TrainConfig:
    """Returns the configuration of the run in a folder.

    Raises:
        UsageError: The folder holds no run, or its configuration cannot be read.
    """
    try:
        values = json.loads((output_dir / CONFIG_FILE).read_text())
        if isinstance(values, dict) and str(values.get("preset")) in TASKS:
            # A run of an earlier version has no say on newer flags: it did as its preset does.
            values = {**TASKS[str(values["preset"])].defaults, **values}
        config = from_json(TrainConfig, values)
        check(config)
        return config
    except (FileNotFoundError, NotADirectoryError):
        refuse("output_dir", output_dir, f"the folder of a run, with its {CONFIG_FILE}")
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise UsageError(f"--output-dir {output_dir}: {CONFIG_FILE}: {error}") from None


def default_output_dir(config: TrainConfig, now: str) -> Path:
    """Returns a new folder's name below runs/: what the run is, and when it began."""
    base = Path("runs") / f"{config.preset}-{config.algorithm}-{now}"
    path, suffix = base, 2
    while os.path.lexists(path):
        path, suffix = base.with_name(f"{base.name}-{suffix}"), suffix + 1
    return path
