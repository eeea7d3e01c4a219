"""Training without communication."""

import dataclasses
from typing import Any, ClassVar

from rps_jax.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class Local(Rule):
    """Averages nothing: every worker trains by itself."""

    lossy: ClassVar[bool] = False

    def sends(self, params: Any) -> Any:
        """Returns what is averaged in one exchange: nothing."""
        del params
        return ()
