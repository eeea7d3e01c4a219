"""What the rules that average over a lossy network have in common: their policies for drops."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from rps_jax.checks import BELOW_ONE, check_number
from rps_jax.rounding import rounded
from rps_jax.rules.rule import Average, Rule
from rps_jax.servers import SERVERS, Server, ServerName

Missed = Literal["own", "zero", "stale"]
MISSED: tuple[Missed, ...] = get_args(Missed)
MessageDtype = Literal["bfloat16", "float16"]
MESSAGE_DTYPES: tuple[MessageDtype, ...] = get_args(MessageDtype)


class PolicyState(NamedTuple):
    """What a worker remembers for policies that use what is old; empty where they do not.

    Attributes:
        average: the average that it holds of each coordinate, of the last exchange that brought it.
        sent: what the servers have of it.
    """

    average: Any = ()
    sent: Any = ()


def copied(tree: Any) -> Any:
    """Returns a pytree in buffers of its own: a step may be given those of the model, too."""
    return jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree)


@dataclasses.dataclass(frozen=True)
class LossyRule(Rule):
    """Averages a tree over the lossy network.

    Attributes:
        on_miss: what a worker goes on with where no average arrives: its "own" value (RPS), "zero",
            or the "stale" average that arrived last.
        server: what the server of a block makes of the messages of which some did not arrive; see
            `rps_jax.servers`.
        server_drop_rate: of the server policy "unbiased", how often messages are dropped.
        message_dtype: what wider floating values are rounded to in messages; None for nothing.

    Raises:
        ValueError: an unknown policy or dtype, or a drop rate that is missing or not needed.
    """

    on_miss: Missed = dataclasses.field(
        default="own",
        metadata={
            "help": "What a worker goes on with where no average arrives.",
            "choices": MISSED,
        },
    )
    server: ServerName = dataclasses.field(
        default="received",
        metadata={"help": "What servers make of what arrives.", "choices": SERVERS},
    )
    server_drop_rate: float | None = dataclasses.field(
        default=None, metadata={"help": "Drop rate that --server unbiased makes up for."}
    )
    message_dtype: MessageDtype | None = dataclasses.field(
        default=None,
        metadata={
            "help": "What values are rounded to in messages; None: nothing.",
            "choices": MESSAGE_DTYPES,
        },
    )

    may_miss: ClassVar[tuple[Missed, ...]] = MISSED
    """Policies of `on_miss` that make sense for what is averaged."""

    def __post_init__(self) -> None:
        if self.on_miss not in self.may_miss:
            expected = ", ".join(self.may_miss)
            raise ValueError(f"on_miss={self.on_miss!r}: expected one of {expected}")
        if self.message_dtype not in (None, *MESSAGE_DTYPES):
            expected = " or ".join(MESSAGE_DTYPES)
            raise ValueError(f"message_dtype={self.message_dtype!r}: expected {expected}, or None")
        Server(self.server, self.server_drop_rate)
        if self.server_drop_rate is not None:
            expected = "a number in [0, 1)"
            check_number("server_drop_rate", self.server_drop_rate, 0, BELOW_ONE, expected)

    @property
    def keeps_sent(self) -> bool:
        """Whether servers keep what reaches them of a worker, and so of its model state."""
        return self.server == "stale"

    def sends(self, params: Any) -> Any:
        """Returns what is averaged in one exchange, in the dtypes of messages."""
        return self._rounded(params)

    def before_rounding(self, tree: Any, average: Average) -> Any:
        """Returns what is rounded to make a message of a tree."""
        del average
        return tree

    def after_rounding(self, tree: Any, message: Any, arrived: Any, average: Average) -> Any:
        """Returns what a worker makes of the average of rounded messages.

        Args:
            tree: the worker's own.
            message: the same as it was sent.
            arrived: the average, in the dtypes of `tree`; where none arrived, what stands for it.
            average: the exchange.
        """
        del tree, message, average
        return arrived

    def remember(self, tree: Any) -> Any:
        """Returns what is remembered before the first exchange: `()` if nothing.

        Args:
            tree: what stands for averages and messages before there were any.
        """
        stale = self.on_miss == "stale", self.keeps_sent
        if not any(stale):
            return ()
        message = self._rounded(tree)
        return PolicyState(*(copied(message) if each else () for each in stale))

    def exchange(self, tree: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages a tree by these policies; returns it, and the memory."""
        old, rounds = memory or PolicyState(), self.message_dtype is not None
        message = self._rounded(self.before_rounding(tree, average) if rounds else tree)
        otherwise = {
            "own": lambda: message,
            "zero": lambda: jax.tree.map(jnp.zeros_like, message),
            "stale": lambda: old.average,
        }[self.on_miss]()
        last = old.sent if self.keeps_sent else None
        server = Server(self.server, self.server_drop_rate, last)
        arrived = average(message, otherwise=otherwise, server=server)
        averaged = arrived
        if rounds:
            wide = jax.tree.map(lambda own, new: new.astype(jnp.result_type(own)), tree, arrived)
            averaged = self.after_rounding(tree, message, wide, average)
        if not memory:
            return averaged, memory
        return averaged, PolicyState(
            arrived if self.on_miss == "stale" else (),
            () if last is None else average.sent_or_last(message, last),
        )

    def _rounded(self, tree: Any) -> Any:
        return tree if self.message_dtype is None else rounded(tree, self.message_dtype)
