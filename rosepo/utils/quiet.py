"""What libraries say goes to a log file instead of the screen: deprecations, advice and notices of other people's code.

An error is shown all the same. Processes that Ray starts here get the file's name by their environment; on a cluster
that was there before, they keep to Ray's own logs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from rosepo.utils.console import echo

DEBUG_LOG = "debug.log"
"""The file in a run's folder."""
_ENVIRONMENT = "ROSEPO_DEBUG_LOG"
_LIBRARIES = (
    "DeepSpeed", "accelerate", "asyncio", "bitsandbytes", "datasets", "deepspeed", "huggingface_hub", "matplotlib",
    "numexpr", "peft", "py", "ray", "sentence_transformers", "tensorboardX", "torch", "transformers", "vllm",
)  # fmt: skip
"""Beginnings of their loggers' names; `py.warnings` are Python's."""
_FORMAT = logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
_RAISES = ("ray.data", "ray.train", "ray.tune")
"""Loggers whose errors come as exceptions too, which the command tells in a sentence."""


def quiet_libraries(log: Path | None = None) -> None:
    """Send what libraries log, and all warnings, to a file, here and in the processes that are started from here.

    Args:
        log: None goes on with the file that was named before, or with none.
    """
    path = (log or Path(os.environ.get(_ENVIRONMENT, os.devnull))).absolute()
    os.environ[_ENVIRONMENT] = str(path)
    # No bars among our lines. Tokenizers warn, once they have used threads and the process forks, unless it is set.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    _Logger.to = _DebugLog(path)
    logging.setLoggerClass(_Logger)
    for name in _LIBRARIES:
        logging.getLogger(name)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and _of_library(name):
            replaced = [handler for handler in logger.handlers if _shows(handler)]
            for handler in replaced:
                logger.removeHandler(handler)
            if replaced or name in _LIBRARIES:
                logger.addHandler(_Logger.to)
    logging.captureWarnings(True)


def quiet_worker() -> None:
    """The same in a process that Ray started, where the command that began it asked for it."""
    if _ENVIRONMENT in os.environ:
        quiet_libraries()


class _DebugLog(logging.FileHandler):
    """Appends to the file once its folder is there: a command that is refused makes none."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setLevel(logging.INFO)
        self._early: list[logging.LogRecord] = []
        self._warned: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        return _FORMAT.format(record)  # Ray gives the handlers of its logger its own

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR and not record.name.startswith(_RAISES):
            echo(f"{record.name}: {record.getMessage()}")
        if record.name == "py.warnings":
            if record.getMessage() in self._warned:  # some libraries give theirs anew at every step
                return
            self._warned.add(record.getMessage())
        self._early.append(record)
        if Path(self.baseFilename).parent.is_dir():
            early, self._early = self._early, []
            with contextlib.suppress(OSError):  # that it cannot be written is no reason to stop work
                for kept in early:
                    super().emit(kept)


class _Logger(logging.Logger):
    """Gives libraries that are imported later, and set themselves a handler for the screen, the file instead."""

    to: logging.Handler

    def addHandler(self, hdlr: logging.Handler) -> None:
        super().addHandler(self.to if _of_library(self.name) and _shows(hdlr) else hdlr)


def _of_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES


def _shows(handler: logging.Handler) -> bool:
    """Whether a handler writes to the screen, or to the file of an earlier call."""
    screens = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, _DebugLog) or getattr(handler, "stream", None) in screens
