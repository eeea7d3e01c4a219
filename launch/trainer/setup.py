"""Everything that a training needs and that does not change while it runs."""

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from data import DataError, Dataset, Source, partition
from launch.channels import ChannelFlags, make_channel
from launch.cli.command_line import UsageError
from launch.cli.fields import fields_of
from launch.config import TrainConfig, predicts_distance, records_steps
from launch.config_file import deciding
from launch.distributed.consistency import check_consistency, digest_of
from launch.rules import make_rule
from launch.tasks import Task, make_task
from launch.tasks.source import check_packets, of_flag
from launch.trainer.evaluate import Evaluator
from launch.trainer.network import Network, Simulated
from launch.trainer.optimizer import make_optimizer
from launch.trainer.run_directory import RunDirectory
from launch.trainer.schedule import Schedule
from launch.trainer.shards import Shards, deal
from launch.trainer.step import OneWorker, Run, TrainStep


@dataclasses.dataclass(frozen=True)
class Setup:
    """A training, ready to begin or to go on.

    Attributes:
        config: The run's configuration.
        directory: Where its results go.
        network: Where the workers are, and what their exchanges go over.
        task: Data and model.
        data: Description of the data.
        data_digest: A digest of them.
        train: The training examples of each worker.
        test: The test examples, dealt in their order.
        schedule: How long the run is.
        run: Channel, learning rate and length, on the devices.
        data_key: Decides the order of the examples, together with worker and epoch.
        train_step: The step of all workers.
        evaluator: Measures their models.
        initial: The state in which they start, `[num_workers, ...]`.
        exchange_bytes: How many a worker sends in an exchange.
    """

    config: TrainConfig
    directory: RunDirectory
    network: Network
    task: Task
    data: str
    data_digest: str
    train: Shards
    test: Shards
    schedule: Schedule
    run: Run
    data_key: jax.Array
    train_step: TrainStep
    evaluator: Evaluator
    initial: rps.TrainState
    exchange_bytes: int

    @property
    def devices(self) -> str:
        """What it runs on, for people."""
        devices = self.network.mesh.mesh.devices
        text = f"{devices.size} x {devices.flat[0].device_kind}"
        processes = jax.process_count()
        return text if processes == 1 else f"{text} in {processes} processes"

    def bytes_sent(self, step: int) -> int:
        """Returns how many bytes a worker has sent until after a step."""
        return step // make_rule(self.config).every * self.exchange_bytes

    @property
    def first_process(self) -> bool:
        """Whether this process writes and speaks for all."""
        return jax.process_index() == 0


def set_up(
    config: TrainConfig, source: Source, output_dir: Path, network: Network | None = None
) -> Setup:
    """Loads the data, deals them out, and makes the programs and the initial state.

    Args:
        config: A checked configuration.
        source: The data, found and checked.
        output_dir: Where the results go; where there are several processes, that of process 0
            counts.
        network: What the exchanges go over; by default a simulated one on this job's devices.

    Raises:
        UsageError: The devices cannot hold the workers, the data are damaged, or the processes were
            not given the same.
    """
    try:
        network = network or Simulated.of(config)
    except ValueError as error:
        raise UsageError(f"the devices cannot hold the workers: {error}") from None
    channel = make_channel(config)
    try:
        dataset = source.load()
    except DataError as error:
        raise of_flag(config, error) from error
    digest = digest_of(dataset)
    directory = check_consistency(config, f"{source.description} {digest}", output_dir)

    train, test = _shards(config, dataset, network)
    schedule = Schedule(
        config.epochs,
        min(train.sizes) // config.batch_size,
        config.log_every,
        config.checkpoint_every,
        config.score_workers_every,
    )
    task, train_step, evaluator = _programs(
        config, digest, network, schedule, lambda: make_task(config, dataset)
    )
    initial, exchange_bytes = _start(config, task, network, channel, schedule.total_steps)
    return Setup(
        config=config,
        directory=RunDirectory(directory),
        network=network,
        task=task,
        data=source.description,
        data_digest=digest,
        train=train,
        test=test,
        schedule=schedule,
        run=train_step.shared(Run(channel, config.learning_rate, schedule.total_steps)),
        data_key=_named_key(config.seed, "data"),
        train_step=train_step,
        evaluator=evaluator,
        initial=network.mesh.replicate(initial),
        exchange_bytes=exchange_bytes,
    )


def _shards(config: TrainConfig, dataset: Dataset, network: Network) -> tuple[Shards, Shards]:
    """Deals out the training and the test examples."""
    labels, test_labels = (split[dataset.label_key] for split in (dataset.train, dataset.test))
    parts = partition(labels, config.num_workers, label_skew=config.label_skew, seed=config.seed)
    test_parts = np.array_split(np.arange(len(test_labels)), config.num_workers)
    return deal(network, dataset.train, parts), deal(network, dataset.test, test_parts)


def _start(
    config: TrainConfig, task: Task, network: Network, channel: Any, total_steps: int
) -> tuple[rps.TrainState, int]:
    """Returns the state in which a worker starts, and the bytes that it sends in an exchange."""
    # Run once: compiling it well would take longer than running it.
    init = jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0})
    params, model_state = init(_named_key(config.seed, "model"))
    packets = getattr(channel, "packets", None)
    if packets is not None:
        check_packets(config, packets, params)
    rule, remembers = make_rule(config), predicts_distance(config)
    initial = rps.init_train_state(
        params,
        model_state,
        make_optimizer(config, config.learning_rate, total_steps, remembers=remembers),
        network.carrier(channel),
        config.num_workers,
        config.seed,
        algorithm=rule,
        count_links=rule.lossy,
    )
    exchanged = jax.eval_shape(rule.sends, params)
    if exchanged != () and config.model_state == "exchange":
        exchanged = exchanged, model_state
    return initial, rps.exchange_bytes(exchanged, config.num_workers, packets or 1)


_MOST_KEPT = 4
_kept: dict[Any, tuple[Task, TrainStep, Evaluator]] = {}
"""The programs of the last few runs of this process, oldest first."""


def _programs(
    config: TrainConfig,
    digest: str,
    network: Network,
    schedule: Schedule,
    make: Callable[[], Task],
) -> tuple[Task, TrainStep, Evaluator]:
    """Returns the task and its programs, those of an earlier run where they are the same.

    Seed, shares of the data, channel, learning rate and length are arguments of the programs.
    """
    arguments = {"seed", "label_skew", "channel", "learning_rate", "epochs"}
    arguments |= fields_of(ChannelFlags).keys()
    static = [item for item in deciding(config).items() if item[0] not in arguments]
    key = (repr(static), records_steps(config), digest, network, schedule.steps_per_epoch)
    if key not in _kept:
        if len(_kept) == _MOST_KEPT:
            del _kept[next(iter(_kept))]
        task = make()
        remembers = predicts_distance(config)
        worker = OneWorker(config, network, task, schedule.steps_per_epoch, remembers)
        _kept[key] = task, TrainStep(worker), Evaluator(network.mesh, task)
    return _kept[key]


def _named_key(seed: int, purpose: str) -> jax.Array:
    """Returns a key of its own for each thing that is random beside the training steps."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
