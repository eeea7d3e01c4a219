"""Training without communication."""

import dataclasses
from typing import ClassVar

from rps_jax.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class Local(Rule):
    """Averages nothing: every worker trains by itself."""

    lossy: ClassVar[bool] = False
