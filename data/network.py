"""Asks once whether the network is there, before a downloader tries for minutes."""

import threading
import urllib.request

from data.errors import DataError


def check_reachable(url: str, timeout: float = 3.0) -> None:
    """Returns if the server answers for `url` within `timeout` seconds.

    Raises:
        DataError: It does not.
    """
    outcome = ["no answer"]

    def probe() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):
                outcome[0] = ""
        except OSError as error:
            outcome[0] = str(getattr(error, "reason", error))

    # A host name that cannot be resolved blocks for longer than any socket's time-out.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(timeout)
    if outcome[0]:
        raise DataError(
            f"{url}: found it unreachable ({outcome[0]}), expected an answer within {timeout:g} s"
        )
