"""Prints what a network's drops would cost a training: `python -m launch.theory plan`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from launch.cli.command_line import Within, expect, optional, read_command, requires

if TYPE_CHECKING:
    from rps_jax.servers import ServerName
    from rps_jax.theory import Moments


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Predict what a network's drops would cost a training, and how long an exchange would take.

    Of what workers differ by, contraction is the share that an exchange leaves, squared, and drift
    how far it moves their mean, squared, in the same unit. Of what they have in common, "equal"
    says how far apart an exchange takes them, squared, and "bias" which share it loses on average.
    "settles" is the consensus distance at which drops and local steps balance, in units of the
    distance by which one step, without momentum, sets the workers apart.
    """

    num_workers: Annotated[int, Within(2, 10_000)] = 16
    """Workers."""
    drop_rate: Annotated[float, Within(0, 0.999, "a probability in [0, 0.999]")] = 0.1
    """Probability that a packet is dropped."""
    mean_burst: Annotated[
        float | None, Within(1, 1e9), optional("FLOAT", "drops are independent")
    ] = None
    """Packets that a link stays bad for, in the mean."""
    good_drop_rate: Annotated[float, Within(0, 1, "a probability in [0, 1]")] = 0
    """Probability that a packet is dropped while its link is good."""
    bad_drop_rate: Annotated[float, Within(0, 1, "a probability in [0, 1]")] = 1
    """The same while it is bad."""
    num_parameters: Annotated[int, Within(1, 2**40)] = 1_700_000
    """Size of the model."""
    bytes_per_parameter: Annotated[int, Within(1, 8)] = 4
    """As it is sent: 4 of float32, 2 of `--message-dtype float16`."""
    link_rate: Annotated[float, Within(1e-3, 1e7, "a rate in [0.001, 10^7] Mbps")] = 1000
    """Of a worker's link, in each direction; Mbps."""
    round_trip: Annotated[float, Within(0, 1e5)] = 1
    """Milliseconds from one worker to another and back."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(PlanConfig, "launch.theory plan", argv, PlanConfig())
    n, p = config.num_workers, config.drop_rate
    good, bad = config.good_drop_rate, config.bad_drop_rate
    _check_bursts(config)

    # Imported late: it takes a second.
    from rps_jax import theory
    from rps_jax.transport.packets import MTU, payload_of

    block_bytes = config.bytes_per_parameter * math.ceil(config.num_parameters / n)
    packets = math.ceil(block_bytes / payload_of(MTU))
    whole = theory.whole_block(p, packets, config.mean_burst, good, bad)
    bursts = ""
    if config.mean_burst is not None:
        inside = f", {good:.3g} on good links, {bad:.3g}" if (good, bad) != (0, 1) else ""
        bursts = f"{inside} in bursts of {config.mean_burst:g}"
    print(
        f"{n} workers, {config.num_parameters:,} parameters of {config.bytes_per_parameter} bytes, "
        f"{config.link_rate:g} Mbps, {config.round_trip:g} ms\n"
        f"{p:.3g} of all packets dropped{bursts}\n"
        f"a message of {packets:,} packet{'s' * (packets > 1)} arrives whole with probability "
        f"{whole:.4g}\n"
    )
    print(f"{'servers, workers that miss':<30}contraction    drift    equal     bias  settles")
    print("models: every exchange brings the workers together")
    _print_policy("received, own (RPS)", theory.moments(n, p), settles=True)
    _print_policy("  messages only whole", theory.moments(n, 1 - whole), settles=True)
    print("gradients: whatever they miss adds up")
    policies: list[tuple[ServerName, str]] = [
        ("received", "own"),
        ("received", "zero"),
        ("zero-filled", "zero"),
        ("unbiased", "zero"),
    ]
    for server, on_miss in policies:
        rate = p if server == "unbiased" else None
        found = theory.moments(n, p, server=server, server_drop_rate=rate, on_miss=on_miss)
        _print_policy(f"{server}, {on_miss}", found, settles=False)
    print()

    message_bytes = block_bytes + packets * (MTU - payload_of(MTU))
    wire = 2 * (n - 1) * message_bytes * 8 / (1e6 * config.link_rate)
    rounds = theory.rounds_until_all(p, n * (n - 1) * packets)
    waiting = wire / (1 - p) + 2 * (rounds - 1) * 1e-3 * config.round_trip
    print(f"{'an exchange':<36}{'seconds':>12}")
    print(f"  {'over UDP, whatever is dropped':<34}{wire:>12.4g}")
    print(f"  {'waiting for everybody, at least':<34}{waiting:>12.4g}")
    print(
        f"waiting: {1 / (1 - p):.2f} times the bytes, and {rounds - 1:.1f} round trips a phase for "
        "what was dropped,\nif the sender knows at once what that is, and never slows down"
    )
    allowed = ", ".join(f"{t:g} at {theory.largest_drop_rate(n, t):.3g}" for t in (0.01, 0.1, 0.5))
    print(f"\nby drop rate, packet by packet, contraction is\n{allowed}")
    return 0


def _check_bursts(config: PlanConfig) -> None:
    """Raises `UsageError` if no link has such bursts."""
    p, good, bad = config.drop_rate, config.good_drop_rate, config.bad_drop_rate
    if config.mean_burst is None:
        for name, usual in (("good_drop_rate", 0), ("bad_drop_rate", 1)):
            if (rate := getattr(config, name)) != usual:
                requires(name, rate, "--mean-burst")
        return
    expect("bad_drop_rate", bad, good < bad, f"more than --good-drop-rate {good:g}")
    between = f"a number in [{good:g}, {bad:g}], between the rates of good and of bad links"
    expect("drop_rate", p, good <= p <= bad, between)
    if p < bad:
        # A link is bad for a share of the time, and good for at least one packet in between.
        least = max(1.0, (p - good) / (bad - p))
        expect("mean_burst", config.mean_burst, config.mean_burst >= least, f"at least {least:.3g}")


def _print_policy(name: str, found: "Moments", *, settles: bool) -> None:
    """Prints a row: what an exchange does by a policy."""
    numbers = (found.contraction, found.drift, found.equal_spread, 1 - found.equal_kept)
    cells = "".join(f"{0.0 if abs(x) < 1e-12 else x:>9.3g}" for x in numbers)
    left = 1 - found.contraction
    distance = f"{(found.contraction / left) ** 0.5:.3g}" if settles and left > 0 else "never"
    print(f"  {name:<30}{cells}{distance:>9}")
