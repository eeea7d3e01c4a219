"""Measures training steps of many workers on one device beside one model on the same examples.

Every worker has a model of its own and a share of the batch; nothing is exchanged. The alternatives
take turns, so that a machine whose speed drifts slows them alike.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from launch.benchmarks.results import Row, check_results, device, median_ratio, write_results
from launch.cli.command_line import Count, Within, expect, read_command
from launch.distributed.devices import start_devices
from models.members import ManyModels

Model = Literal["resnet8", "resnet20", "resnet110", "lstm"]

_DEPTHS = {"resnet8": 8, "resnet20": 20, "resnet110": 110}
_TOKENS, _LENGTH, _TAGS = 867, 46, 120
"""As ATIS has them; sentences are 10 to 20 tokens long."""


@dataclasses.dataclass(frozen=True)
class WorkersConfig:
    """Measure steps of many workers on one device beside one model on the same examples."""

    models: tuple[Model, ...] = ("resnet20", "lstm")
    """What is trained: ResNets on images of 32 x 32, the LSTM on sentences."""
    num_workers: Annotated[tuple[int, ...], Within(1, 4096)] = (16, 64)
    """Workers that share the device."""
    batch_size: Annotated[int, Within(1, 2**20)] = 128
    """Examples of all workers together."""
    many_models: tuple[ManyModels, ...] = ("auto",)
    """How a vmap over models is computed, see `models.members`; on a CPU, "vmap" takes minutes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the models' computation."""
    rounds: Count = 7
    """How often each alternative is measured."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(WorkersConfig, "launch.bench workers", argv, WorkersConfig())
    check_results(config.json)
    for n in config.num_workers:
        divides = config.batch_size % n == 0
        expect("num_workers", n, divides, f"divisors of --batch-size {config.batch_size}")
    start_devices(1, 1)
    print(
        f"{'model':<10}{'workers':>8}  {'computed':<10}{'median s':>9}{'ratio':>7}{'compile s':>11}"
    )
    rows = [row for model in config.models for row in _measure(config, model)]
    write_results(config.json, "workers", config, rows, **device())
    return 0


def _measure(config: WorkersConfig, model: Model) -> list[Row]:
    """Returns a row for one model alone, and for each number of workers and alternative."""
    import jax

    ways: list[tuple[int, ManyModels]] = [(1, "auto")]
    ways += [(n, how) for n in config.num_workers for how in config.many_models]
    steps, compiled = [], []
    for n, how in ways:
        step, *arguments = _step(model, n, config.batch_size // n, how, config.dtype)
        began = time.perf_counter()
        program = jax.jit(step).lower(*arguments).compile()
        compiled.append(time.perf_counter() - began)
        steps.append((program, arguments))
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(config.rounds + 1):
        for (program, arguments), measured in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if turn:  # The first is the warm-up.
                measured.append(time.perf_counter() - began)
    rows = []
    for (n, how), measured, compile_seconds in zip(ways, seconds, compiled, strict=True):
        ratio = median_ratio(measured, seconds[0])
        row = {"model": model, "workers": n, "many_models": how, "ratio": ratio}
        rows.append({**row, "seconds": measured, "compile_seconds": compile_seconds})
        print(
            f"{model:<10}{n:>8}  {how:<10}{statistics.median(measured):>9.3f}{ratio:>7.2f}"
            f"{compile_seconds:>11.1f}",
            flush=True,
        )
    return rows


def _step(
    model: Model, num_workers: int, batch_size: int, many_models: ManyModels, dtype: str
) -> tuple[Callable[..., Any], Any, Any]:
    """Returns a step of plain SGD of all workers, and what it takes: models and batches."""
    import jax

    loss, one, batch = (
        _images(model, batch_size, many_models, dtype)
        if model in _DEPTHS
        else _sentences(batch_size, many_models, dtype)
    )

    def of_worker(params: Any, batch: Any) -> Any:
        return jax.tree.map(lambda x, g: x - 0.1 * g, params, jax.grad(loss)(params, batch))

    many = [
        jax.tree.map(lambda x: jax.numpy.stack([x] * num_workers), values)
        for values in (one, batch)
    ]
    return jax.vmap(of_worker), *many


def _images(
    model: str, batch_size: int, many_models: ManyModels, dtype: str
) -> tuple[Any, Any, Any]:
    import jax
    import numpy as np

    import models

    rng = np.random.default_rng(0)
    net = models.ResNet(_DEPTHS[model], dtype=dtype, many_models=many_models)
    images = rng.normal(size=(batch_size, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch_size)
    variables = _initial(lambda key: net.init(key, images[:1], train=False))

    def loss(params: Any, batch: Any) -> Any:
        stats = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, _ = net.apply(stats, batch[0], train=True, mutable=["batch_stats"])
        return models.cross_entropy(jax.numpy.asarray(logits), batch[1])

    return loss, variables["params"], (images, labels)


def _sentences(batch_size: int, many_models: ManyModels, dtype: str) -> tuple[Any, Any, Any]:
    import jax
    import numpy as np

    import models

    rng = np.random.default_rng(0)
    net = models.SlotTagger(_TOKENS, _TAGS, dtype=dtype, many_models=many_models)
    tokens = rng.integers(0, _TOKENS, (batch_size, _LENGTH))
    tags = rng.integers(0, _TAGS, (batch_size, _LENGTH))
    lengths = rng.integers(10, 21, batch_size)
    params = _initial(lambda key: net.init(key, tokens[:1], lengths[:1]))

    def loss(params: Any, batch: Any) -> Any:
        tokens, tags, lengths = batch
        mask = models.length_mask(lengths, _LENGTH)
        return models.cross_entropy(
            jax.numpy.asarray(net.apply(params, tokens, lengths)), tags, mask
        )

    return loss, params, (tokens, tags, lengths)


def _initial(init: Callable[[Any], Any]) -> Any:
    """Returns what a model starts from, on the host; compiled fast, as it is run once."""
    import jax

    program = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})
    return jax.device_get(program(jax.random.key(0)))
