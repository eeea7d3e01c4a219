"""Makes the figures of the paper.

    python -m launch.reproduce fig4c --data-path ATIS
    python -m launch.reproduce fig4a --data-path CIFAR --scale reduced
    python -m launch.reproduce search --model lstm --data-path ATIS

`docs/figures.md` says what comes of it.
"""

import importlib
import sys
from collections.abc import Sequence

from launch.cli.commands import entry_point, subcommand

_COMMANDS = {
    "fig4a": "models averaged, at all drop rates: ResNet-20 on CIFAR-10",
    "fig4b": "the same with ResNet-110",
    "fig4c": "the same with an LSTM on ATIS",
    "fig5a": "models averaged beside gradients: ResNet-20 on CIFAR-10",
    "fig5b": "the same with ResNet-110",
    "fig5c": "the same with an LSTM on ATIS",
    "fig6": "drops against the speed-up of the web: launch.colocate fig6",
    "fig7": "drops against the messages served: launch.colocate fig7",
    "search": "the learning rate, batch size and schedule of figures 4 and 5",
}
_MODULES = {
    "fig6": "launch.colocation.fig6",
    "fig7": "launch.colocation.fig7",
    "search": "launch.figures.search",
}
"""Those with a `run` of their own; the others are the `FIGURES` of launch.figures.paper."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    name = subcommand("launch.reproduce", _COMMANDS, argv)
    if name is None:
        return 0
    # Imported late: each needs what the others do not.
    if name in _MODULES:
        status: int = importlib.import_module(_MODULES[name]).run(argv[1:])
        return status
    from launch.figures.figure import run

    return run(name, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
