"""Exact theory of bursts within one exchange: the Gilbert-Elliott model, begun stationary."""


def whole_block(drop_rate: float, packets: int, mean_burst: float | None = None) -> float:
    """Returns the probability that all packets of one message arrive.

    A link that is good delivers, one that is bad drops; the packets follow each other. A burst is
    an unbroken run of drops. Each packet by itself is dropped at the same rate whatever the bursts,
    so that an average by packets contracts as `alphas` says; what counts a block only whole sees
    a drop rate of 1 - `whole_block`.

    Args:
        drop_rate: p in [0, 1], of each packet.
        packets: how many a message is cut into, at least 1.
        mean_burst: mean length of a burst, in packets, at least p / (1 - p) and 1; None for
            independent drops, whose bursts are of 1 / (1 - p).

    Raises:
        ValueError: a number out of range.

    >>> print(f"{whole_block(0.1, 32):.4f} {whole_block(0.1, 32, mean_burst=8):.4f}")
    0.0343 0.5834
    """
    if not 0 <= drop_rate <= 1:
        raise ValueError(f"drop_rate={drop_rate}: expected a probability in [0, 1]")
    if packets < 1:
        raise ValueError(f"packets={packets}: expected at least 1")
    arrival = 1 - drop_rate
    if mean_burst is None or arrival in (0, 1):
        return arrival**packets
    if mean_burst < max(1, drop_rate / arrival):
        raise ValueError(
            f"mean_burst={mean_burst}: expected at least 1 and drop_rate / (1 - drop_rate)"
        )
    turns_bad = drop_rate / (arrival * mean_burst)
    return float(arrival * (1 - turns_bad) ** (packets - 1))
