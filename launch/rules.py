"""The averaging rules that a run can have; their options are flags."""

import dataclasses
from typing import TYPE_CHECKING

from launch.cli.command_line import UsageError
from launch.cli.fields import flags_of, joined, options_of
from rps_jax.rules import RULES, Rule

if TYPE_CHECKING:
    from launch.config import TrainConfig

LOSSY = tuple(name for name, rule in RULES.items() if rule.lossy)
"""The algorithms whose exchanges go over the lossy network."""

RULE_FLAGS = {name: flags_of(rule) for name, rule in RULES.items()}
"""Those of each rule."""

if TYPE_CHECKING:

    @dataclasses.dataclass(frozen=True)
    class RuleFlags:
        """The options of all rules."""

else:
    RuleFlags = joined("RuleFlags", RULE_FLAGS.values())


def make_rule(config: "TrainConfig") -> Rule:
    """Returns the rule of a run.

    Raises:
        UsageError: It cannot have these options.
    """
    try:
        options = options_of(RULE_FLAGS[config.algorithm], config)
        return RULES[config.algorithm](**options)
    except ValueError as error:
        raise UsageError(f"--algorithm {config.algorithm}: {error}") from None
