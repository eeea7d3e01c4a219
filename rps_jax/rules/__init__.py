"""What workers average: one rule a file, and the registry of their names."""

import dataclasses
from typing import Any

from rps_jax.rules.all_reduce import AllReduceModels as AllReduceModels
from rps_jax.rules.diloco import DiLoCo as DiLoCo
from rps_jax.rules.gradients import AverageGradients as AverageGradients
from rps_jax.rules.local import Local as Local
from rps_jax.rules.models import AverageModels as AverageModels
from rps_jax.rules.overlap import OverlapModels as OverlapModels
from rps_jax.rules.rule import Average as Average
from rps_jax.rules.rule import Rule as Rule

RULES: dict[str, type[Rule]] = {
    "rps": AverageModels,
    "gradient-averaging": AverageGradients,
    "diloco": DiLoCo,
    "overlap": OverlapModels,
    "all-reduce": AllReduceModels,
    "local": Local,
}
"""Every rule by the name that command lines have for it."""


def make_rule(algorithm: str | Rule, **options: Any) -> Rule:
    """Returns a rule by its name, or the rule itself.

    Args:
        algorithm: a name in `RULES`, or a rule.
        options: fields of the rule that the name stands for.

    Raises:
        ValueError: an unknown name, an option that the rule does not have, or one for a rule that
            is made already.
    """
    known: tuple[str, ...] = ()
    if isinstance(algorithm, Rule):
        kind = type(algorithm)
    elif algorithm in RULES:
        kind = RULES[algorithm]
        if dataclasses.is_dataclass(kind):
            known = tuple(field.name for field in dataclasses.fields(kind))
    else:
        raise ValueError(f"algorithm={algorithm!r}: expected one of {', '.join(RULES)}")
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r}: expected {' or '.join(known) or 'no options'}, for "
                f"{kind.__name__}"
            )
    return algorithm if isinstance(algorithm, Rule) else kind(**options)
