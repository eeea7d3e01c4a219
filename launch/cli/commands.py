"""What every command begins and ends with: its name, its arguments, its exit status."""

import atexit
import functools
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from launch.cli.command_line import CommandError, UsageError, wrapped


def entry_point(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Returns the main function of a command: what ends it early is said in one line.

    Args:
        main: Given the arguments, by default those of this process; returns the exit status.
    """

    @functools.wraps(main)
    def of_process(argv: Sequence[str] | None = None) -> int:
        return exit_status(lambda: main(sys.argv[1:] if argv is None else argv))

    return of_process


def exit_status(run: Callable[[], int]) -> int:
    """Runs a command and returns its exit status; whatever ends it early is said in one line.

    Args:
        run: The command; returns its exit status.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Not every terminal can show every letter.
    try:
        return run()
    except CommandError as error:
        if report := error.report():
            print(report, file=sys.stderr, flush=True)
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read the output has gone; Python is not to complain of it when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Once more, and Python would die before it has ended what else is running.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def subcommand(module: str, commands: dict[str, str], argv: Sequence[str]) -> str | None:
    """Returns which of several commands comes first, None where `--help` asked for their list.

    Args:
        module: What is run, as in `python -m MODULE`.
        commands: What each is, for people.
        argv: The arguments.

    Raises:
        UsageError: None of them comes first.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: python -m {module} COMMAND [OPTIONS]\n")
        width = max(map(len, commands))
        for name, what in commands.items():
            print(wrapped(what, f"  {name:<{width}}  ", " " * (width + 4)))
        print(f"\npython -m {module} COMMAND --help lists the options of each.")
        return None
    if not argv or argv[0] not in commands:
        found = f" {argv[0]}" if argv else ""
        raise UsageError(f"{module}{found}: expected one of {', '.join(commands)}")
    return argv[0]


def run_subcommand(module: str, commands: dict[str, str], argv: Sequence[str], package: str) -> int:
    """Runs one of several commands, the `run` of a module each; returns its exit status.

    Args:
        module: What is run, as in `python -m MODULE`.
        commands: What each is, for people.
        argv: The arguments, of which the command is the first.
        package: Where the modules are; one that is not asked for is not imported.
    """
    name = subcommand(module, commands, argv)
    if name is None:
        return 0
    status: int = importlib.import_module(f"{package}.{name}").run(argv[1:])
    return status
