"""What ties a process of a job to the supervisor that started it, here or over ssh.

The process reads its standard input: a line is the number of a signal to give to itself; the end
means that the supervisor is gone, and then the process must not stay behind. To its standard
output it writes a heartbeat every second, so that one that hangs is told from one that works.
"""

import os
import signal
import threading
import time

ENVIRONMENT = "RPS_SUPERVISED"
"""Set to 1 in processes that are supervised."""

BEAT = b"\x06"
"""The byte that is a heartbeat; it may come anywhere in what the process says."""

_BEAT_SECONDS = 1.0


def start_heartbeat() -> None:
    """Starts to obey the supervisor, if there is one."""
    if os.environ.get(ENVIRONMENT) != "1":
        return
    for loop in (_obey, _beat):
        threading.Thread(target=loop, daemon=True).start()


def _obey() -> None:
    with open(0, "rb", buffering=0, closefd=False) as orders:
        for order in orders:
            os.kill(os.getpid(), int(order))
    os.kill(os.getpid(), signal.SIGKILL)


def _beat() -> None:
    while True:
        try:
            os.write(1, BEAT)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_BEAT_SECONDS)
