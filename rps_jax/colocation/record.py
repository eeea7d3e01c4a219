"""What arrived of bursty learning, as a file: the losses of a real queue, to train under."""

import json
import os
from pathlib import Path

import numpy as np

from rps_jax.colocation.settings import Settings
from rps_jax.colocation.simulation import Result

FORMAT = 1


def save_record(path: Path, settings: Settings, result: Result) -> None:
    """Writes the packets that arrived, whole or not at all.

    The file is an `.npz` of

    - `arrived`: uint8, `np.packbits` over the last axis of bool
      `[iterations, 2, num_hosts, num_hosts, packets]`: iteration, phase (0 reduce-scatter, 1
      all-gather), source, destination, packet of the chunk; what a host sends itself arrives;
    - `packets`: int64 scalar, how many there are in a chunk;
    - `format`: int64 scalar, 1;
    - `description`: a JSON object of the settings and the summary.

    Args:
        path: Of the file.
        settings: That were simulated.
        result: Of a simulation with `record=True`.
    """
    assert result.arrived is not None
    description = {"settings": settings.as_json(), "summary": result.summary()}
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            arrived=np.packbits(result.arrived, axis=-1),
            packets=np.int64(result.arrived.shape[-1]),
            format=np.int64(FORMAT),
            description=np.array(json.dumps(description)),
        )
    os.replace(unfinished, path)
