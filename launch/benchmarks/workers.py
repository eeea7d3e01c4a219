"""The workers on the hosts of a bed, as the benchmark that asks them sees them."""

import json
import os
import sys
from typing import Any, Self

from launch.bed import Bed
from launch.cli.command_line import CommandError


class Workers:
    """A worker on every host, each a process; a context manager. See `launch.benchmarks.worker`.

    Attributes:
        processes: In the order of the hosts.
    """

    def __init__(self, bed: Bed, num_parameters: int) -> None:
        """Starts them, and waits until they have met; they end with the bed.

        Args:
            bed: The hosts.
            num_parameters: Size of their model.
        """
        self._errors = [os.fdopen(os.memfd_create("stderr"), "w+") for _ in bed.addresses]
        self.processes = [
            bed.start(
                host,
                *(sys.executable, "-m", "launch.benchmarks.worker"),
                stdin=-1,
                stdout=-1,
                stderr=errors,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            for host, errors in enumerate(self._errors)
        ]
        for host in range(len(self.processes)):
            self._tell(host, worker=host, addresses=bed.addresses, num_parameters=num_parameters)
        self.answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for errors in self._errors:
            errors.close()

    def ask(self, do: str, **arguments: Any) -> list[Any]:
        """Returns every worker's answer."""
        self.tell(do, **arguments)
        return self.answers()

    def tell(self, do: str, **arguments: Any) -> None:
        """Asks every worker, without waiting for the answers."""
        for host in range(len(self.processes)):
            self._tell(host, do=do, **arguments)

    def answers(self) -> list[Any]:
        """Waits for every worker's answer.

        Raises:
            CommandError: One has died; with its last words.
        """
        found = []
        for host, process in enumerate(self.processes):
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                self._errors[host].seek(0)
                words = self._errors[host].read().strip().splitlines() or ["without a word"]
                raise CommandError(f"the worker on host-{host} has died: {words[-1]}")
            found.append(json.loads(line))
        return found

    def _tell(self, host: int, **request: Any) -> None:
        stdin = self.processes[host].stdin
        assert stdin
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
