"""What the benchmarks on a bed have in common."""

from typing import Annotated

from launch.bed import congestion_controls, missing
from launch.cli.command_line import UsageError, expect, optional

CongestionControl = Annotated[str | None, optional("NAME", "this machine's")]


def check_bed(command: str, congestion_control: str | None) -> None:
    """Raises `UsageError` if a bed cannot be made here, or not with this congestion control.

    Args:
        command: Subcommand of launch.bench.
        congestion_control: Its flag.
    """
    if reason := missing():
        raise UsageError(f"launch.bench {command}: expected network namespaces: {reason}")
    known = congestion_controls()
    holds = congestion_control in (None, *known)
    expect("congestion_control", congestion_control, holds, " or ".join(known))
