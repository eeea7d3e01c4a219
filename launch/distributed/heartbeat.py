"""What ties a process of a job to the supervisor that started it, here or over ssh.

The process reads its standard input: a line is the number of a signal to give to itself, or a
secret, which others on the host could read in a command line; the end means that the supervisor is
gone, and then the process must not stay behind. To its standard output it writes a heartbeat every
second, so that one that hangs is told from one that works.
"""

import os
import queue
import signal
import threading
import time

ENVIRONMENT = "RPS_SUPERVISED"
"""Set to 1 in processes that are supervised."""

BEAT = b"\x06"
"""The byte that is a heartbeat; it may come anywhere in what the process says."""

_BEAT_SECONDS = 1.0
_SECRET = b"secret "
_secrets: "queue.SimpleQueue[bytes]" = queue.SimpleQueue()


def supervised() -> bool:
    """Returns whether a supervisor has started this process."""
    return os.environ.get(ENVIRONMENT) == "1"


def start_heartbeat() -> None:
    """Starts to obey the supervisor, if there is one."""
    if not supervised():
        return
    for loop in (_obey, _beat):
        threading.Thread(target=loop, daemon=True).start()


def secret_order(secret: bytes) -> bytes:
    """Returns the line that gives a process a secret."""
    return _SECRET + secret.hex().encode() + b"\n"


def wait_for_secret(seconds: float) -> bytes:
    """Returns the secret that the supervisor gives this process.

    Raises:
        TimeoutError: It has given none.
    """
    try:
        return _secrets.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no secret came within {seconds:g} s") from None


def _obey() -> None:
    with open(0, "rb", buffering=0, closefd=False) as orders:
        for order in orders:
            if order.startswith(_SECRET):
                _secrets.put(bytes.fromhex(order.removeprefix(_SECRET).decode()))
            else:
                os.kill(os.getpid(), int(order))
    os.kill(os.getpid(), signal.SIGKILL)


def _beat() -> None:
    while True:
        try:
            os.write(1, BEAT)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_BEAT_SECONDS)
