"""Trains over a network that drops messages: `python -m launch.train --help`.

    python -m launch.train                                  the digits, offline, in about a minute
    python -m launch.train --preset atis-lstm --data-path ATIS
    python -m launch.train --preset cifar10-resnet20 --data-path CIFAR --drop-rate 0.01

Reads as it runs: what can be wrong with a command line is found before JAX is started.
"""

import sys
from collections.abc import Sequence
from datetime import datetime

from launch.cli.commands import entry_point
from launch.config import default_output_dir, parse
from launch.distributed.devices import start_devices
from launch.distributed.heartbeat import start_heartbeat
from launch.distributed.initialize import count_processes, join, report_lost_peers, run_and_leave
from launch.reports.results import print_summary
from launch.tasks.source import find_source
from launch.trainer.run_directory import RunDirectory
from launch.trainer.writing import check_can_record, check_can_write


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = parse(argv)
    start_heartbeat()
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    output_dir = config.output_dir or default_output_dir(config, now)
    if config.record is not None:
        check_can_record(config.record)
    if config.profile is not None:
        check_can_write("profile", config.profile)
    if not config.resume:
        RunDirectory(output_dir).check_is_free()
    source = find_source(config)

    start_devices(config.num_workers // count_processes(config), config.workers_per_device)
    join(config)
    # Imported late: it takes seconds, and what was wrong with the command line is said by now.
    from launch.trainer.training import train

    with report_lost_peers():
        summary = train(config, source, output_dir)
    if summary is not None:
        print_summary(summary, output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run_and_leave(main))
