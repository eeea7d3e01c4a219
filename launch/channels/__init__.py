"""Where the losses of a run come from: drawn at random, or replayed from a trace."""

import rps_jax as rps
from launch.cli.command_line import UsageError, refuse
from launch.config import TrainConfig


def make_channel(config: TrainConfig) -> rps.Bernoulli | rps.Trace:
    """Returns the channel of a run, in host memory.

    Raises:
        UsageError: The trace cannot be read, or is of another number of hosts.
    """
    if config.trace is None:
        assert config.drop_rate is not None  # as the command line was checked for
        return rps.Bernoulli(config.drop_rate, config.all_gather_drop_rate, config.packets)
    try:
        trace = rps.Trace.load(config.trace)
    except OSError as error:
        refuse("trace", config.trace, f"a file that can be read ({error.strerror})")
    except ValueError as error:
        raise UsageError(f"--trace {error}") from None
    if trace.num_hosts != config.num_workers:
        refuse(
            "num_workers",
            config.num_workers,
            f"{trace.num_hosts}, the number of hosts in --trace {config.trace}",
        )
    return trace
