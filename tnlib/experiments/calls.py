"""Who of this process's threads may call modules while another traces one."""

import threading
from contextlib import contextmanager


class _Calls:
    """While a thread traces, torch takes the calls of modules in all threads of the process for part of it. So one traces
    when no other evaluates: `.replaced()` around the one, `.as_they_are()` around the other."""

    def __init__(self):
        self._changed, self._evaluating, self._tracing = threading.Condition(), 0, 0

    @contextmanager
    def replaced(self):
        with self._changed:
            self._tracing += 1  # from now on nobody begins to evaluate
            self._changed.wait_for(lambda: not self._evaluating)
            try:
                yield
            finally:
                self._tracing -= 1
                self._changed.notify_all()

    @contextmanager
    def as_they_are(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing)
            self._evaluating += 1
        try:
            yield
        finally:
            with self._changed:
                self._evaluating -= 1
                self._changed.notify_all()


CALLS = _Calls()
