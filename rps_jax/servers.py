"""What the server of a block makes of the messages of which some did not arrive.

"received"      their sum over the number that arrived: RPS; Yu et al., ICML 2019.
"zero-filled"   their sum over the number of workers, so that what was dropped counts as zero, which
                biases the average towards it: OptiReduce; Warraich et al., NSDI 2025.
"unbiased"      the same with every message of another worker weighted by 1 / (1 - drop_rate), so
                that the average is right in expectation: arXiv 2507.07114. (There everything is
                divided by n (1 - p); here a worker's own message always arrives, and counts once.)
"stale"         where a worker's message is missing, the last of it that arrived stands in: MIFA;
                Gu et al., "Fast Federated Learning in the Presence of Arbitrary Device
                Unavailability", NeurIPS 2021.

The last is computed where the message is sent, which in a simulation knows what arrived: worker i
keeps what the servers have of it, and that is summed where its message is dropped. Where blocks
change their servers, it is as if that memory moved with the block.
"""

import dataclasses
from typing import Any, Literal, get_args

ServerName = Literal["received", "zero-filled", "unbiased", "stale"]
SERVERS: tuple[ServerName, ...] = get_args(ServerName)


@dataclasses.dataclass(frozen=True)
class Server:
    """A policy of servers.

    Attributes:
        name: one of `SERVERS`.
        drop_rate: of "unbiased", the probability that a message is dropped, in [0, 1).
        last: of "stale", what the servers have of this worker: a pytree like what is averaged.

    Raises:
        ValueError: an unknown name, or a drop rate that is missing or belongs to another policy.
    """

    name: ServerName = "received"
    drop_rate: Any = None
    last: Any = None

    def __post_init__(self) -> None:
        if self.name not in SERVERS:
            raise ValueError(f"server={self.name!r}: expected one of {', '.join(SERVERS)}")
        if (self.drop_rate is None) == (self.name == "unbiased"):
            expected = "a number in [0, 1)" if self.drop_rate is None else "None"
            raise ValueError(
                f"server_drop_rate={self.drop_rate}: expected {expected}, with server={self.name!r}"
            )


RECEIVED = Server()
"""That of RPS."""
