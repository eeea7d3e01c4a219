"""A packet simulation of training that shares a switch with a web service.

    python -m launch.colocate simulate --web-rate 5000 --threshold-bytes 100000
    python -m launch.colocate plan --web-rate 5000 --target-ms 3
    python -m launch.colocate fig6

`docs/colocation.md` says what is simulated, and what comes of it.
"""

import sys
from collections.abc import Sequence

from launch.cli.commands import entry_point, run_subcommand

COMMANDS = {
    "simulate": "one setting: completion times of the web, drops of the training",
    "plan": "how much training traffic must be dropped, if any, for the web to be fast enough",
    "fig6": "figure 6 of the paper: drops against the speed-up of the web",
    "fig7": "figure 7 of the paper: drops against the messages served",
    "tradeoff": "both halves: what training reaches under the drops that make the web faster",
    "validate": "queueing theory beside what is measured",
    "bench": "packets simulated a second",
}


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return run_subcommand("launch.colocate", COMMANDS, argv, "launch.colocation")


if __name__ == "__main__":
    sys.exit(main())
