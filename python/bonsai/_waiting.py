# SPDX-License-Identifier: Apache-2.0
"""Waiting for work on another thread so that Ctrl-C still stops it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Callable

from ._lib import lib
from .types import Step

STREAM = "bonsai-stream"  # the thread of a stream, which prints nothing and is joined


def interruptible(ctx: Any, call: Callable[[], None]) -> None:
    """Runs a call that has no callbacks so that Ctrl-C cancels it."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        try:
            wait([future])
        except BaseException:
            while not future.done():
                lib.bonsai_cancel(ctx)
                wait([future], 0.05)
            raise
    return future.result()


def stay_at_exit(exiting: threading.Event) -> None:
    """Keeps a daemon thread here for good while the interpreter ends.

    Python ends with an abort if such a thread still prints, as it does with what a call raises.
    """
    thread = threading.current_thread()
    if exiting.is_set() and thread.daemon and thread.name != STREAM:
        threading.Event().wait()


def steps_with_picture(done: queue.SimpleQueue[Any]) -> Iterator[Step]:
    """What a stream's thread has put there, until the picture or an error comes."""
    last: Step | None = None
    while True:
        item = done.get()
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, Step) and item.step < item.steps:
            yield item
        elif isinstance(item, Step):
            last = item  # held back until its picture is there
        elif last is not None:
            yield replace(last, image=item, done=True)
            return
