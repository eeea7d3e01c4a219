"""What a rule is: which of a worker's values are averaged, when, and what stands in for a miss."""

from typing import Any, ClassVar, Protocol

import jax

from rps_jax.delivery import Delivery
from rps_jax.servers import RECEIVED, Server


class Average(Protocol):
    """One exchange, as a rule sees it; to be called at most once a step."""

    def __call__(self, tree: Any, otherwise: Any, server: Server = RECEIVED) -> Any:
        """Averages `tree` over the workers; where no average arrives, `otherwise` stands."""
        ...

    def sent_or_last(self, tree: Any, last: Any) -> Any:
        """Returns, after the call, what servers have of this worker: `last` of what was dropped."""
        ...

    @property
    def delivery(self) -> Delivery:
        """What arrived; to be asked for after the call."""
        ...

    @property
    def rule_key(self) -> jax.Array:
        """A key for what a rule draws: the same on every worker, another in every exchange."""
        ...


class Rule:
    """A rule of averaging; the base class averages nothing.

    A rule is a frozen dataclass, a value like an optax transformation: its fields are its options.
    A field's metadata may have `help`, a line for people, and `choices`, the values it may have.

    Attributes:
        lossy: whether its exchanges go over the lossy network; if not, over a reliable one.
        overlaps: whether it averages the model before the local step, during that step: `on_params`
            is given that model, the change of the step is added to what it returns, and
            `on_gradients` is not called.
    """

    lossy: ClassVar[bool] = True
    overlaps: ClassVar[bool] = False

    @property
    def in_turn(self) -> bool:
        """Whether parts of the model take turns, so that all must be in the same exchange."""
        return False

    @property
    def every(self) -> int:
        """How many steps there are to an exchange; those of gradients have one each."""
        return 1

    @property
    def keeps_sent(self) -> bool:
        """Whether servers keep what reaches them of a worker, and so of its model state."""
        return False

    def sends(self, params: Any) -> Any:
        """Returns what is averaged in one exchange, or its shapes; `()` if nothing."""
        return params

    def init(self, params: Any) -> Any:
        """Returns what a worker remembers from step to step: `()` if nothing.

        Args:
            params: the worker's initial model.
        """
        del params
        return ()

    def on_gradients(self, grads: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Returns the gradients that the local step applies, and the memory."""
        del average
        return grads, memory

    def on_params(self, params: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Returns the model after the local step, and the memory."""
        del average
        return params, memory
