"""What arrived of bursty learning, as a trace: the drops of a simulated queue, to train under."""

from pathlib import Path

import numpy as np

from rps_jax.channels import Trace
from rps_jax.colocation.settings import Settings
from rps_jax.colocation.simulation import Result


def save_record(path: Path, settings: Settings, result: Result) -> None:
    """Writes the packets that arrived as a `rps_jax.Trace`, described by settings and summary.

    Args:
        path: The file to write.
        settings: What was simulated.
        result: A simulation with `record=True`.
    """
    assert result.arrived is not None
    trace = Trace(np.packbits(result.arrived, axis=-1), packets=result.arrived.shape[-1])
    trace.save(path, {"settings": settings.as_json(), "summary": result.summary()})
