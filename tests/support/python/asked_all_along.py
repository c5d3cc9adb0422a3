"""Requests that go on while something happens to the mesh."""

import contextlib
import threading


@contextlib.contextmanager
def asked_all_along(ask, expected, threads=1):
    """Calls ask() again and again from some threads while the block runs.

    At its end, AssertionError where one answer was not `expected`, or failed; a
    thread stops at the first such.
    """
    stop, wrong = threading.Event(), []

    def go_on():
        while not stop.is_set():
            try:
                answer = ask()
            except Exception as error:  # whatever it is, it must be seen
                wrong.append(error)
                return
            if answer != expected:
                wrong.append(answer)
                return
    askers = [threading.Thread(target=go_on) for _ in range(threads)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    if wrong:
        raise AssertionError(f"{wrong} instead of {expected}")
