"""Prints how one exchange contracts the workers' models: predicted beside measured.

python -m launch.theory --num-workers 2 16 64 --drop-rates 0.01 0.1 0.3
python -m launch.theory plan --num-workers 16 --drop-rate 0.1 --mean-burst 8
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

from launch import plan
from launch.cli.command_line import (
    Probabilities,
    Seed,
    Within,
    check_memory,
    read_command,
)
from launch.cli.commands import entry_point
from launch.distributed.gpus import check_platforms


@dataclasses.dataclass(frozen=True)
class TheoryConfig:
    """Predict, and measure, what one exchange does to the workers' models.

    Contraction is what an exchange leaves of the squared consensus distance; drift is how far it
    moves the mean model, squared, in units of the squared consensus distance. Both predictions are
    exact; the measurements are real exchanges, with the half-width of their 95% confidence
    intervals. `python -m launch.theory plan` says what a network's drops would cost a training.
    """

    num_workers: Annotated[tuple[int, ...], Within(2, 10_000)] = (2, 4, 16, 64)
    """Numbers of workers."""
    drop_rates: Probabilities = (0.01, 0.1, 0.3)
    """Probabilities that a message is dropped."""
    num_exchanges: Annotated[int, Within(2, 1_000_000)] = 2000
    """Exchanges to measure, of each."""
    seed: Seed = 0
    """Seed of the drops and the models."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    if argv[:1] == ["plan"]:
        return plan.run(argv[1:])
    config = read_command(TheoryConfig, "launch.theory", argv, TheoryConfig())
    most = max(config.num_workers)
    # Models of 16 coordinates a block, before and after, as pieces, sums and counts.
    check_memory("num_workers", most, 8 * 4 * 16 * most**2)
    check_platforms()

    import rps_jax as rps
    from launch.reports.intervals import half_width

    print(f"{'':>13}  {'contraction':^29}  {'drift of the mean':^29}")
    columns = f"{'predicted':>9}  {'measured':>18}"
    print(f"{'workers':>7} {'drop':>5}  {columns}  {columns}")
    for num_workers in config.num_workers:
        for drop_rate in config.drop_rates:
            channel = rps.Bernoulli(drop_rate)
            found = rps.theory.measure(channel, num_workers, config.num_exchanges, config.seed)
            contraction_half, drift_half = (
                half_width(error, found.samples)
                for error in (found.errors.contraction, found.errors.drift)
            )
            print(
                f"{num_workers:7d} {drop_rate:5.3g}  "
                f"{rps.theory.contraction(num_workers, drop_rate):9.6f}  "
                f"{found.means.contraction:8.6f} ±{contraction_half:8.6f}  "
                f"{rps.theory.drift(num_workers, drop_rate):9.6f}  "
                f"{found.means.drift:8.6f} ±{drift_half:8.6f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
