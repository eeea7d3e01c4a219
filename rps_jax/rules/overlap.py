"""Models averaged while the next gradients are computed, and the changes of both added up.

x_i(t + 1) = average(x(t))_i + change(x_i(t)): the exchange of what step t leaves runs during step
t + 1, and what it brings is applied one step late. This is D-PSGD, Lian et al., "Can Decentralized
Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, algorithm 1, over the network of RPS,
which computes "in parallel" what RPS does in turn: x_i(t + 1) = average(x(t) + change(x(t)))_i.
"""

import dataclasses
from typing import ClassVar

from rps_jax.rules.models import AverageModels


@dataclasses.dataclass(frozen=True)
class OverlapModels(AverageModels):
    """Averages models during the next local step; what is missed stays the worker's own.

    A worker is one local change further from the others than with RPS: where an exchange leaves the
    share b of the squared distance from the mean and the changes of a step add s to it, it settles
    at s / (1 - b) instead of b s / (1 - b). On losses of curvature h, without drops, plain SGD is
    stable for step sizes below 1 / h; with RPS, below 2 / h.
    """

    overlaps: ClassVar[bool] = True
