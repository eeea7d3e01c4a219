"""What the coordinator learns, in the order in which it comes."""

import queue
import threading
from collections import deque
from typing import Any, NamedTuple


class Event(NamedTuple):
    """What the coordinator learns.

    Attributes:
        kind: "greeting", "gone", or what the worker has told.
        worker: Of whom.
        header: The rest of the header.
        payload: Bytes.
    """

    kind: str
    worker: int
    header: dict[str, Any]
    payload: bytes


class Events:
    """Events in order, bounded: where they are not taken, messages wait where they come from."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """Holds none.

        Args:
            most: How many it holds.
            most_bytes: How many bytes of payloads, where it holds more than one event.
        """
        self._most, self._most_bytes = most, most_bytes
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, event: Event) -> None:
        """Adds an event, once there is room.

        Raises:
            ConnectionError: Nobody takes them any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(event))
            if self._closed:
                raise ConnectionError("the coordinator has closed its port")
            self._events.append(event)
            self._changed.notify_all()

    def get(self, timeout: float) -> Event:
        """Returns the oldest event.

        Args:
            timeout: Seconds to wait for one.

        Raises:
            queue.Empty: There was none by then.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._events, timeout):
                raise queue.Empty
            event = self._events.popleft()
            self._changed.notify_all()
            return event

    def close(self) -> None:
        """Takes no more, and drops all."""
        with self._changed:
            self._closed = True
            self._events.clear()
            self._changed.notify_all()

    def _has_room(self, event: Event) -> bool:
        held = sum(len(each.payload) for each in self._events) + len(event.payload)
        return not self._events or (len(self._events) < self._most and held <= self._most_bytes)
