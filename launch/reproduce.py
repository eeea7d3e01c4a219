"""Makes the figures of the paper.

    python -m launch.reproduce fig4c --data-path ATIS
    python -m launch.reproduce fig4a --data-path CIFAR --scale reduced
    python -m launch.reproduce search --model lstm --data-path ATIS

`docs/figures.md` says what comes of it.
"""

import sys
from collections.abc import Sequence

from launch.command_line import UsageError, exit_status

_COMMANDS = {
    "fig4a": "models shared, at all rates of loss: ResNet-20 on CIFAR-10",
    "fig4b": "the same with ResNet-110",
    "fig4c": "the same with an LSTM on ATIS",
    "fig5a": "models beside gradients: ResNet-20 on CIFAR-10",
    "fig5b": "the same with ResNet-110",
    "fig5c": "the same with an LSTM on ATIS",
    "fig6": "loss against the speed-up of the web: launch.colocate fig6",
    "fig7": "loss against the messages served: launch.colocate fig7",
    "search": "the learning rate, batch size and schedule that figures 4 and 5 are made with",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return exit_status(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print("usage: python -m launch.reproduce FIGURE [OPTIONS]\n")
        for name, what in _COMMANDS.items():
            print(f"  {name:<8}{what}")
        print("\npython -m launch.reproduce FIGURE --help lists the options of each.")
        return 0
    if not argv or argv[0] not in _COMMANDS:
        found = f" {argv[0]}" if argv else ""
        raise UsageError(f"launch.reproduce{found}: expected one of {', '.join(_COMMANDS)}")
    name, options = argv[0], argv[1:]
    # Imported late: each needs what the others do not.
    if name in ("fig6", "fig7"):
        from launch.colocate import main as colocate

        return colocate(argv)
    if name == "search":
        from launch.reproduction.search import run as search

        return search(options)
    from launch.reproduction.figure import run as figure

    return figure(name, options)


if __name__ == "__main__":
    sys.exit(main())
