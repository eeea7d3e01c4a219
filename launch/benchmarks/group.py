"""Processes on the hosts of a bed that are asked, and answer, by lines of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self

from launch.bed import Bed
from launch.cli.command_line import CommandError

COORDINATOR_PORT, FIRST_PORT = 8476, 4100
"""Of every host; nobody else is in the namespaces of a bed."""


class Group:
    """A process on every host; a context manager.

    Attributes:
        processes: In the order of the hosts.
    """

    def __init__(self, bed: Bed, module: str, **arguments: Any) -> None:
        """Starts them, and waits until they are ready; they end with the bed.

        Args:
            bed: The hosts.
            module: Of the processes; it calls `answer_requests` with what is made of `host`,
                `addresses` of all hosts, and the arguments.
            **arguments: As JSON has them.
        """
        self._errors = [os.fdopen(os.memfd_create("stderr"), "w+") for _ in bed.addresses]
        self.processes = [
            bed.start(
                host,
                *(sys.executable, "-m", module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            for host, errors in enumerate(self._errors)
        ]
        for host in range(len(self.processes)):
            self._tell(host, {"host": host, "addresses": bed.addresses, **arguments})
        self.answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for errors in self._errors:
            errors.close()

    def ask(self, do: str, **arguments: Any) -> list[Any]:
        """Returns every process's answer."""
        self.tell(do, **arguments)
        return self.answers()

    def tell(self, do: str, **arguments: Any) -> None:
        """Asks every process, without waiting for the answers."""
        for host in range(len(self.processes)):
            self._tell(host, {"do": do, **arguments})

    def answers(self) -> list[Any]:
        """Waits for every process's answer.

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
                # Of what Python raised, the last line; of what XLA died of, not the stack.
                errors = [line for line in words if "rror" in line] or words
                raise CommandError(f"the process on host-{host} has died: {errors[-1]}")
            found.append(json.loads(line))
        return found

    def _tell(self, host: int, request: dict[str, Any]) -> None:
        stdin = self.processes[host].stdin
        assert stdin
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()


def answer_requests(make: Callable[..., Any]) -> None:
    """Answers until stdin ends: what the process of a group does.

    The first line has the arguments of `make`, each other one is
    `{"do": METHOD, ARGUMENT: VALUE, ...}` of what that has made.
    """
    # Libraries write to stdout, too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = make(**json.loads(sys.stdin.readline()))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(made, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # JAX would wait for the others.
