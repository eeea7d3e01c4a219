"""Hosts on one machine, joined by a network of the kernel's that is as slow and lossy as is said.

    with Bed(num_hosts=4, link=Link(rate=200e6, drop_rate=0.1)) as bed:
        bed.start(0, "ping", "-c", "3", bed.addresses[1]).wait()

Needs Linux, root, and the commands `ip` and `tc` (iproute2); see `missing`.
"""

from launch.bed.bed import Bed as Bed
from launch.bed.bed import Counts as Counts
from launch.bed.bed import congestion_controls as congestion_controls
from launch.bed.bed import missing as missing
from launch.bed.link import Link as Link
