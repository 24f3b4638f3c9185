# SPDX-License-Identifier: Apache-2.0
"""Engine: a model that is open. A thin layer; what it does is documented in bonsai.h."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Literal, Union, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from ._arguments import PRECISIONS, choice, generate_params, integer, listener
from ._lib import check, encode, ffi, lib, new_struct, text
from ._progress import Bar
from ._waiting import STREAM, interruptible, stay_at_exit, steps_with_picture
from .errors import ArgumentError, Cancelled
from .library import find_model
from .types import STAGES, ModelInfo, Progress, Step, from_struct, picture

_log = logging.getLogger("bonsai")
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_exiting = threading.Event()
ProgressArgument = Union[bool, Callable[[Progress], Any], None]


@atexit.register
def _stop_all() -> None:
    """Daemon threads must not come back from a call when the interpreter is gone."""
    _exiting.set()
    for engine in list(_engines):
        engine._stop(10)


class Engine:
    """A model file, opened on a device.

    model: path of a GGUF file, or "hub:owner/name", which is fetched from the Hugging Face Hub and
        converted once, with progress on stderr, and read from the cache afterwards; None takes
        $BONSAI_MODEL, else an installed model, else the small demo model that comes with bonsai
        (the logger "bonsai" says so).
    device: "auto" or an id from bonsai.devices().
    threads: None takes the physical cores this process may use.
    precision: "fast" (int8 activations) or "exact" (float).
    max_memory: bytes to stay below, by streaming weights and decoding in strips.

    Methods may be called from any thread; those of one engine that compute wait for each other.
    A process that a fork makes opens engines of its own: the threads of others stay behind.
    Warnings of the engine go to the logger "bonsai".
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "fast",
        *,
        max_memory: int | None = None,
    ) -> None:
        self._ctx = None
        self._process = os.getpid()
        self._idle = threading.Condition()
        self._users: list[int] = []  # threads inside a call of the library
        self._closing = False

        @ffi.callback("bonsai_log_callback")
        def log(line: Any, _user: Any) -> None:
            _log.warning("%s", text(line))

        device_name = ffi.new("char[]", encode("device", device))
        params = ffi.new("bonsai_open_params *")
        lib.bonsai_open_params_init(params)
        params.threads = integer("threads", threads, 1, 4096)
        params.precision = choice("precision", precision, PRECISIONS)
        params.max_memory = integer("max_memory", max_memory, 1, 2**63)
        params.device = device_name
        params.log = self._log_callback = log
        out = ffi.new("bonsai_context **")
        check(lib.bonsai_open(encode("model", find_model(model)), params, out))
        self._ctx = out[0]
        info = new_struct("bonsai_model_info")
        check(lib.bonsai_model_get_info(self._ctx, info))
        self._info: ModelInfo = from_struct(ModelInfo, info)
        _engines.add(self)

    @property
    def info(self) -> ModelInfo:
        """Sizes, defaults, hash and origin of the model."""
        return self._info

    @overload
    def generate(
        self,
        prompt: str,
        width: int | None = ...,
        height: int | None = ...,
        steps: int | None = ...,
        seed: int | None = ...,
        n: Literal[1] = ...,
        guidance: float | None = ...,
        progress: ProgressArgument = ...,
        callback: Callable[[Step], Any] | None = ...,
        *,
        shift: float | None = ...,
        noise_dtype: str = ...,
        timestep_dtype: str = ...,
        preview_every: int = ...,
    ) -> Image.Image: ...

    # Any: an n that is not known before the program runs may be 1.
    @overload
    def generate(
        self,
        prompt: str,
        width: int | None = ...,
        height: int | None = ...,
        steps: int | None = ...,
        seed: int | None = ...,
        n: int = ...,
        guidance: float | None = ...,
        progress: ProgressArgument = ...,
        callback: Callable[[Step], Any] | None = ...,
        *,
        shift: float | None = ...,
        noise_dtype: str = ...,
        timestep_dtype: str = ...,
        preview_every: int = ...,
    ) -> list[Image.Image] | Any: ...

    def generate(
        self,
        prompt: str,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        n: int = 1,
        guidance: float | None = None,
        progress: ProgressArgument = None,
        callback: Callable[[Step], Any] | None = None,
        *,
        shift: float | None = None,
        noise_dtype: str = "f32",
        timestep_dtype: str = "f32",
        preview_every: int = 0,
    ) -> Image.Image | list[Image.Image]:
        """Draws a picture, or a list of n pictures with the seeds seed, seed + 1, ...

        None takes the model's default, and a random seed.
        progress: True shows a line on a terminal; a function gets Progress objects.
        callback: gets a Step after each step, with a preview every preview_every steps.
        Both run on this thread; what they raise stops the drawing and is raised here, and so is
        KeyboardInterrupt.

        picture.info["bonsai"] holds the settings. Pillow keeps them when told to:
        picture.save(path, pnginfo=bonsai.pnginfo(picture)).
        """
        bar = Bar() if progress is True else None
        report = bar if bar is not None else listener("progress", progress or None)
        try:
            images = self._draw(
                prompt,
                report,
                listener("callback", callback),
                width=width,
                height=height,
                steps=steps,
                seed=seed,
                n=n,
                guidance=guidance,
                shift=shift,
                noise_dtype=noise_dtype,
                timestep_dtype=timestep_dtype,
                preview_every=preview_every,
            )
        finally:
            if bar is not None:
                bar.close()
        return images if len(images) > 1 else images[0]

    def stream(
        self,
        prompt: str,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        guidance: float | None = None,
        *,
        shift: float | None = None,
        noise_dtype: str = "f32",
        timestep_dtype: str = "f32",
        preview_every: int = 0,
    ) -> Iterator[Step]:
        """Draws one picture on another thread and yields each step when it is done.

        The last step holds the finished picture.
        Leaving the loop early, or closing the iterator, stops the drawing.
        """
        steps_done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = threading.Event()
        settings = {
            "width": width,
            "height": height,
            "steps": steps,
            "seed": seed,
            "n": 1,
            "guidance": guidance,
            "shift": shift,
            "noise_dtype": noise_dtype,
            "timestep_dtype": timestep_dtype,
            "preview_every": preview_every,
        }

        def stop_if_left(_progress: Progress) -> None:
            if stop.is_set():
                raise Cancelled("the stream was closed")

        def work() -> None:
            try:
                (image,) = self._draw(prompt, stop_if_left, steps_done.put, **settings)
                steps_done.put(image)
            except BaseException as error:
                steps_done.put(error)

        worker = threading.Thread(target=work, name=STREAM, daemon=True)
        worker.start()
        try:
            yield from steps_with_picture(steps_done)
        finally:
            stop.set()
            worker.join()

    def encode_prompt(self, prompt: str) -> npt.NDArray[np.float32]:
        """What the transformer is conditioned on: float32 [max_tokens, prompt_width].

        Padding rows are included.
        """
        out = np.empty((self._info.max_tokens, self._info.prompt_width), np.float32)
        data = encode("prompt", prompt)

        def call() -> None:
            check(lib.bonsai_prompt_encode(ctx, data, ffi.from_buffer("float[]", out), out.size))

        with self._use() as ctx:
            interruptible(ctx, call)
        return out

    def save_embeds(self, prompt: str, path: str | os.PathLike[str]) -> None:
        """Writes what encode_prompt computes to a file, from which load_embeds takes it."""
        data, file = encode("prompt", prompt), encode("path", path)
        with self._use() as ctx:
            interruptible(ctx, lambda: check(lib.bonsai_embeds_save(ctx, data, file)))

    def load_embeds(self, path: str | os.PathLike[str]) -> str:
        """Reads a file of save_embeds, which must be of the same model; returns its prompt.

        Pictures of this prompt that are drawn next need no text encoder.
        """
        out = ffi.new("char **")
        with self._use() as ctx:
            check(lib.bonsai_embeds_load(ctx, encode("path", path), out))
        try:
            return text(out[0])
        finally:
            lib.bonsai_free(out[0])

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of the template around the prompt, cut to max_tokens, not padded."""
        ids = ffi.new("int32_t[]", self._info.max_tokens)
        count = ffi.new("int32_t *")
        with self._use() as ctx:
            data = encode("prompt", prompt)
            check(lib.bonsai_prompt_tokenize(ctx, data, ids, self._info.max_tokens, count))
        return list(ids[0 : min(count[0], self._info.max_tokens)])

    def close(self) -> None:
        """Stops what still runs on other threads and releases the model. May be called again."""
        if self._process != os.getpid():
            self._ctx = None  # its threads, which closing would wait for, are not here
            return
        with self._idle:
            if threading.get_ident() in self._users:
                raise ArgumentError("close() inside a callback; raise an exception instead")
            self._stop()
            ctx, self._ctx = self._ctx, None
        if ctx is not None:
            lib.bonsai_close(ctx)

    def _stop(self, seconds: float = float("inf")) -> None:
        """Takes no more calls, cancels those that run and waits for them."""
        if self._process != os.getpid():
            return
        end = time.monotonic() + seconds
        with self._idle:
            self._closing = True
            while self._users and time.monotonic() < end:
                lib.bonsai_cancel(self._ctx)
                self._idle.wait(0.05)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # __init__ may have failed before there was anything to close.
        if getattr(self, "_ctx", None) is not None:
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an Engine cannot be copied or pickled; open the model again")

    def __repr__(self) -> str:
        state = "closed" if self._ctx is None else self._info.device
        return f"<bonsai.Engine {self._info.name} ({self._info.variant}), {state}>"

    @contextmanager
    def _use(self) -> Iterator[Any]:
        """The context, guarded against close() on another thread."""
        if self._process != os.getpid():
            raise ArgumentError("the engine was opened before a fork; open it in this process")
        me = threading.get_ident()
        with self._idle:
            if self._closing or self._ctx is None:
                raise ArgumentError("the engine is closed")
            self._users.append(me)
        try:
            yield self._ctx
        finally:
            with self._idle:
                self._users.remove(me)
                self._idle.notify_all()
            stay_at_exit(_exiting)

    def _draw(
        self,
        prompt: str,
        on_progress: Callable[[Progress], Any] | None,
        on_step: Callable[[Step], Any] | None,
        **settings: Any,
    ) -> list[Image.Image]:
        raised: list[BaseException] = []

        def keep(_type: Any, error: BaseException, _traceback: Any) -> None:
            raised.append(error)

        # Called even when nobody listens: running Python lets a pending KeyboardInterrupt through.
        @ffi.callback("bonsai_progress_callback", error=1, onerror=keep)
        def progress_callback(progress: Any, _user: Any) -> int:
            if self._closing:
                raise Cancelled("the engine was closed")
            if on_progress is not None:
                on_progress(from_struct(Progress, progress, stage=STAGES[progress.stage]))
            return 0

        @ffi.callback("bonsai_step_callback", error=1, onerror=keep)
        def step_callback(step: Any, _user: Any) -> int:
            shape = (step.latent_height, step.latent_width, step.latent_channels)
            data = ffi.buffer(step.latents, 4 * shape[0] * shape[1] * shape[2])
            latents = np.frombuffer(data, np.float32).reshape(shape).copy()
            image = picture(step.rgb, step.width, step.height) if step.rgb else None
            on_step(Step(step.image, step.step, step.steps, step.sigma, latents, image))
            return 0

        text_data = ffi.new("char[]", encode("prompt", prompt))
        params = generate_params(**settings)
        params.prompt = text_data
        params.on_progress = progress_callback
        if on_step is not None:
            params.on_step = step_callback
        images = ffi.new("bonsai_image[]", params.images)
        with self._use() as ctx:
            try:
                status = lib.bonsai_generate(ctx, params, images)
                if raised:
                    raise raised[0]
                check(status)
                return [self._finish(image) for image in images]
            finally:
                for i in range(params.images):
                    lib.bonsai_image_free(ffi.addressof(images, i))

    @staticmethod
    def _finish(image: Any) -> Image.Image:
        """A picture of Pillow's own; the library's goes at once."""
        drawn = picture(image.rgb, image.width, image.height)
        if image.metadata:
            drawn.info["bonsai"] = text(image.metadata)
        lib.bonsai_image_free(ffi.addressof(image))
        return drawn
