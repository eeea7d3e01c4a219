"""Measures what exchanges, metrics and many workers cost, on one machine and over real links.

    python -m launch.bench --num-workers 8 --num-parameters 270000 1700000
    python -m launch.bench wire --rates 1000 200 --drop-rates 0 0.1

`exchange`, the first of them, need not be named.
"""

import sys
from collections.abc import Sequence

from launch.cli.commands import entry_point, run_subcommand

COMMANDS = {
    "exchange": "the lossy exchange beside a plain all-reduce, on the devices of this machine",
    "wire": "exchanges over UDP beside an all-reduce over TCP, on real links that drop packets",
    "workers": "many workers on one device beside one model on the same examples",
    "startup": "from the command of a training to its first finished step",
    "scale": "exchanges of 16 to 1024 workers that share one device",
    "memory": "what memory a training step takes, in copies of the model",
    "training": "whole trainings of both kinds on such links: loss over wall-clock time",
    "overlap": "training steps whose exchange runs beside the local step, on such links",
    "metrics": "a training that measures itself beside one that does not",
    "colocation": "training beside a web service, on real links and in the simulation of the same",
}


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["exchange", *argv]
    return run_subcommand("launch.bench", COMMANDS, argv, "launch.benchmarks")


if __name__ == "__main__":
    sys.exit(main())
