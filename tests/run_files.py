"""Reads what runs leave behind, for tests to compare."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of metrics; a run that goes on may be writing the last."""
    whole = (folder / "metrics.jsonl").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def reproducible(folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics without those that the clock decides."""
    timed = ("examples_per_second", "wall_seconds")
    lines = read_metrics(folder)
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def saved_state(folder: Path, step: int) -> Any:
    """Returns the state of a checkpoint, by however many processes it was saved."""
    path = folder / "checkpoints" / str(step) / "state"
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    leaves = checkpointer.metadata(path).item_metadata.tree
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), leaves)
    return checkpointer.restore(path, args=ocp.args.StandardRestore(like))


def assert_same_state(left: Path, right: Path, step: int) -> None:
    """Compares checkpoints bit for bit."""
    left_state, right_state = saved_state(left, step), saved_state(right, step)
    assert jax.tree.structure(left_state) == jax.tree.structure(right_state)
    for a, b in zip(jax.tree.leaves(left_state), jax.tree.leaves(right_state), strict=True):
        assert a.tobytes() == b.tobytes()
