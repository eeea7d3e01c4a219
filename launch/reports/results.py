"""What a command prints of a training that is done."""

import os
from pathlib import Path
from typing import Any


def print_summary(summary: dict[str, Any], output_dir: Path) -> None:
    """Prints the results of a run, in a few lines.

    Args:
        summary: Of the run.
        output_dir: Where its files are.
    """
    score = summary["score"]
    worst, best = (summary[f"{which}_worker_{score}"] for which in ("worst", "best"))
    sent = summary["bytes_sent_per_worker"]
    rows = {
        "training loss": f"{summary['mean_model_train_loss']:.4f} (mean model, all examples)",
        score.replace("_", " "): f"{summary[score]:.4f} (mean model), "
        f"{worst:.4f} to {best:.4f} (workers)",
        "consensus distance": f"{summary['consensus_distance']:.3g}",
        "messages delivered": f"{summary['delivered_fraction']:.1%}" if sent else "-",
        "sent by a worker": f"{sent / 1e6:.4g} MB",
        **_heard(summary),
        "wall time": f"{summary['wall_seconds']:.0f} s",
        "results": f"{output_dir}{os.sep}",
    }
    print()
    for name, value in rows.items():
        print(f"{name:<20}{value}", flush=True)


def _heard(summary: dict[str, Any]) -> dict[str, str]:
    """Returns a row for workers of which the end knows nothing, if there are any."""
    heard, expected = summary.get("workers"), summary.get("num_workers")
    return {} if heard in (None, expected) else {"workers at the end": f"{heard} of {expected}"}
