"""A link of the bed, and the kernel's words for it."""

import dataclasses

_BURST_SECONDS = 0.002
"""What the shaper lets pass at once; with less, its timer bounds the rate."""
_LEAST_BURST_PACKETS = 4
_ETHERNET_BYTES = 14
_CARD_BYTES = 1_500_000
"""What may wait at a host's own card, where senders wait for room: 1000 packets, as is usual."""
_LOWER_EFFORT_TOS = 1 << 2
"""DSCP 1 (RFC 8622), as it stands in the IP header."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A host's cable to the switch, the same in both directions.

    Attributes:
        rate: bits a second, headers of Ethernet included.
        drop_rate: probability that a packet is dropped at random on its way from the sender's
            cable to the receiver's.
        queue_seconds: what may wait in the switch for the cable, in seconds of its rate; what
            comes when as much waits is dropped.
        mtu: bytes of the largest packet, header of IP included.
        lower_effort_last: whether traffic marked as lower effort goes only when nothing else waits,
            and has a queue of its own.
    """

    rate: float
    drop_rate: float = 0.0
    queue_seconds: float = 0.02
    mtu: int = 1500
    lower_effort_last: bool = False

    def of_card(self, device: str) -> list[str]:
        """Returns lines for `tc -batch` that make a host's card send by this link."""
        return self._shape(device, max(_CARD_BYTES, self._queue_bytes))

    def of_port(self, device: str) -> list[str]:
        """Returns lines for `tc -batch` that make a switch's port send by this link, and drop."""
        return [*self._shape(device, self._queue_bytes), self._drop(device)]

    @property
    def _frame_bytes(self) -> int:
        return self.mtu + _ETHERNET_BYTES

    @property
    def _queue_bytes(self) -> int:
        return round(self.rate * self.queue_seconds / 8)

    def _shape(self, device: str, queue_bytes: int) -> list[str]:
        burst = max(_LEAST_BURST_PACKETS * self._frame_bytes, self.rate * _BURST_SECONDS / 8)
        rate = round(self.rate)
        queue = f"limit {round(burst) + queue_bytes}"
        shaper = f"tbf rate {rate}bit burst {round(burst)} {queue}"
        lines = [f"qdisc replace dev {device} root handle 1: {shaper}"]
        if not self.lower_effort_last:
            return lines
        # All may borrow the whole link, and whoever has the lower number borrows first; what is
        # theirs without borrowing has to be something.
        least = f"rate {rate // 100}bit burst {round(burst / 100)}"
        most = f"ceil {rate}bit cburst {round(burst)} quantum {self._frame_bytes}"
        lines += [
            f"qdisc replace dev {device} root handle 2: htb default 10",
            f"class replace dev {device} parent 2: classid 2:1 htb rate {rate}bit "
            f"burst {round(burst)} {most}",
        ]
        for minor, priority in (("10", 0), ("20", 1)):
            lines += [
                f"class replace dev {device} parent 2:1 classid 2:{minor} htb {least} {most} "
                f"prio {priority}",
                f"qdisc replace dev {device} parent 2:{minor} handle {minor}: bfifo {queue}",
            ]
        match = f"u32 match ip dsfield {_LOWER_EFFORT_TOS:#x} 0xfc flowid 2:20"
        return [
            *lines,
            f"filter replace dev {device} parent 2: protocol ip pref 1 handle 800::800 {match}",
        ]

    def _drop(self, device: str) -> str:
        # A classic BPF program, which needs neither a compiler nor a module. ARP is spared: a
        # dropped answer is a second of silence, and none of what is asked here.
        threshold = min(round(self.drop_rate * 2**32), 2**32 - 1)
        drop, keep = "6 0 0 2", "6 0 0 0"  # Return TC_ACT_SHOT, and TC_ACT_OK.
        if threshold == 0:
            program = f"1,{keep}"
        else:
            # Load the random word (SKF_AD_OFF + SKF_AD_RANDOM); skip the drop where it is at
            # least the threshold.
            program = f"4,32 0 0 {2**32 - 0x1000 + 56},53 1 0 {threshold},{drop},{keep}"
        bpf = f"bpf da bytecode '{program}'"
        return f"filter replace dev {device} ingress protocol ip pref 1 handle 1 {bpf}"
