# SPDX-License-Identifier: Apache-2.0
"""Stopping, closing, and use from several threads."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bonsai
import numpy as np
import pytest
from bonsai import Engine

SMALL = {"width": 64, "height": 64, "steps": 1}
# Minutes of work if nothing stops it.
LONG = {"width": 256, "height": 256, "steps": 1000, "seed": 1}


class Stop(Exception):
    pass


def stop_in_step(step) -> None:
    raise Stop(step.step)


@pytest.mark.parametrize("listener", ["progress", "callback"])
def test_exceptions_of_listeners_come_out(shared_engine, listener):
    with pytest.raises(Stop):
        shared_engine.generate("x", **LONG, **{listener: stop_in_step})
    shared_engine.generate("x", **SMALL)


def test_leaving_a_stream_stops_it(shared_engine):
    began = time.monotonic()
    for step in shared_engine.stream("x", **LONG):
        assert step.step == 1
        break
    assert time.monotonic() - began < 30
    shared_engine.generate("x", **SMALL)
    assert not [t for t in threading.enumerate() if t.name == "bonsai-stream"]


def test_errors_of_a_stream_come_out(shared_engine):
    with pytest.raises(bonsai.ArgumentError):
        list(shared_engine.stream("x", width=100))


INTERRUPTED = """
    import os, signal, sys, threading, time
    from bonsai import Engine
    engine = Engine(sys.argv[1])
    long = dict(width=256, height=256, steps=1000, seed=1)
    started = threading.Event()
    def interrupt():
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    def began(*_):
        started.set()
    try:
        if sys.argv[2] == "generate":
            engine.generate("x", progress=began, **long)
        elif sys.argv[2] == "silent":
            threading.Timer(1, began).start()
            engine.generate("x", **long)
        else:
            for step in engine.stream("x", **long):
                began()
    except KeyboardInterrupt:
        engine.generate("x", width=64, height=64, steps=1)  # still usable
        engine.close()
        print("interrupted")
"""


@pytest.mark.parametrize("how", ["generate", "silent", "stream"])
@pytest.mark.skipif(os.name == "nt", reason="signals work otherwise on Windows")
def test_keyboard_interrupt(model, how):
    script = textwrap.dedent(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-c", script, model, how], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "interrupted\n", done.stderr


def test_interrupted_encoding(shared_engine, monkeypatch):
    """Without callbacks the call runs on a worker thread, which is told to stop and waited for."""
    cancelled = []
    monkeypatch.setattr("bonsai._waiting.wait", interrupt_first(cancelled))
    with pytest.raises(KeyboardInterrupt):
        shared_engine.encode_prompt("x")
    monkeypatch.undo()
    assert cancelled
    assert np.isfinite(shared_engine.encode_prompt("x")).all()


def interrupt_first(cancelled: list):
    from concurrent.futures import wait

    def interrupted(futures, timeout=None):
        if timeout is None:
            cancelled.append(True)
            raise KeyboardInterrupt
        return wait(futures, timeout)

    return interrupted


def test_close_is_idempotent_and_final(model):
    engine = Engine(model)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.generate("x", **SMALL),
        lambda: engine.encode_prompt("x"),
        lambda: engine.tokenize("x"),
        lambda: list(engine.stream("x", **SMALL)),
    ):
        with pytest.raises(bonsai.ArgumentError, match="closed"):
            call()
    assert engine.info.variant == "ternary" and "closed" in repr(engine)


LEFT = """
    import atexit, sys, threading, time
    atexit.register(time.sleep, 0.3)  # after bonsai: a time in which threads could print
    from bonsai import Engine
    engine = Engine(sys.argv[1])
    long = dict(width=256, height=256, steps=1000, seed=1)
    if sys.argv[2] == "stream":
        steps = engine.stream("x", **long)
        next(steps)
    else:
        begun = threading.Event()
        draw = lambda: engine.generate("x", progress=lambda _: begun.set(), **long)
        threading.Thread(target=draw, daemon=True).start()
        begun.wait()
    print("left")
"""


@pytest.mark.parametrize("how", ["stream", "daemon"])
def test_a_program_may_end_while_it_draws(model, how):
    script = textwrap.dedent(LEFT)
    command = [sys.executable, "-c", script, model, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # Python may abort when a thread prints while it ends.
    assert (done.stdout, done.stderr, done.returncode) == ("left\n", "", 0)


FORKED = """
    import os, sys, warnings
    import bonsai
    warnings.simplefilter("ignore")  # of forks beside threads
    small = dict(width=64, height=64, steps=1, seed=1)
    engine = bonsai.Engine(sys.argv[1])
    picture = engine.generate("x", **small)
    child = os.fork()
    if child == 0:
        try:
            engine.generate("x", **small)
        except bonsai.ArgumentError as error:
            assert "fork" in str(error)
            engine.close()
            with bonsai.Engine(sys.argv[1]) as own:
                assert own.generate("x", **small).tobytes() == picture.tobytes()
            sys.exit(7)
    assert os.waitpid(child, 0)[1] == 7 << 8
    assert engine.generate("x", **small).tobytes() == picture.tobytes()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_opens_engines_of_its_own(model):
    script = textwrap.dedent(FORKED)
    done = subprocess.run(
        [sys.executable, "-c", script, model], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_engines_have_no_copies(shared_engine):
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="open the model again"):
            copied(shared_engine)


def test_close_stops_other_threads(model):
    engine = Engine(model)
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(engine.generate, "x", progress=lambda _: started.set(), **LONG)
        assert started.wait(60)
        engine.close()
        with pytest.raises(bonsai.Cancelled):
            drawing.result(30)


def test_calls_inside_a_callback_are_refused(shared_engine):
    for call in (shared_engine.close, lambda: shared_engine.generate("y", **SMALL)):
        with pytest.raises(bonsai.ArgumentError):
            shared_engine.generate("x", **LONG, progress=lambda _, call=call: call())
    shared_engine.generate("x", **SMALL)


def test_threads_get_their_own_pictures_and_errors(shared_engine):
    alone = [np.asarray(shared_engine.generate("x", seed=s, **SMALL)) for s in range(4)]

    def work(seed: int) -> np.ndarray:
        with pytest.raises(bonsai.ArgumentError, match=str(100 + seed)):
            shared_engine.generate("x", width=100 + seed, height=64, steps=1)
        return np.asarray(shared_engine.generate("x", seed=seed, **SMALL))

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))


def test_python_runs_while_the_engine_draws(shared_engine):
    """The interpreter lock is free: another thread counts on during every step."""
    counts, ticks, done = [], [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    shared_engine.generate(
        "x", seed=1, width=256, height=256, steps=4, callback=lambda _: counts.append(ticks[0])
    )
    done.set()
    thread.join()
    assert all(after > before for before, after in zip(counts, counts[1:]))


def test_interrupt_signal_is_what_python_expects():
    """The library installs no handlers of its own."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
