"""A vLLM server of one model: started for an actor, on its GPUs, in an environment of vLLM's own, and ended with it.

vLLM pins versions of its own of nearly everything that rosepo needs, so it is a command and not an import.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosepo.config.base import ActorsConfig
from rosepo.lm.model.adapters import adapter_base
from rosepo.lm.model.model_source import find_source
from rosepo.lm.serving.served_model import MOST_TOKENS, ServedModel, answers
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.processes import end_with_parent

PATIENCE = 3600.0
"""Seconds that a server may take until it answers: large models come over networks."""
ADAPTER = "policy"
"""Name under which a server that is started here serves an adapter."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA adapters that vLLM has room for


@dataclass(frozen=True)
class Serving:
    """How models are served.

    Attributes:
        vllm: the command that starts a server, or the http(s) address of one that runs.
        gpus: that one server divides the model among; 0 runs it on CPUs.
        precision: float32 or bfloat16.
        memory: share of each GPU's memory that the server takes.
    """

    vllm: str
    gpus: int
    precision: str
    memory: float

    def __call__(self, model: str, max_length: int) -> ServedModel:
        """A model folder or hub id, served.

        Args:
            max_length: tokens of the longest prompt with its title.

        Raises:
            UserError: an adapter that vLLM does not serve, or an address at which the model is not served.
            StageError: the server ended before it answered.
        """
        if self.vllm.startswith(("http://", "https://")):
            return ServedModel.attached(self.vllm, model)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [*shlex.split(self.vllm), "serve", *arguments(self, model, max_length, port)]
        handle, log = tempfile.mkstemp(prefix="rosepo-vllm-", suffix=".log")
        process = _start(command, handle, on_gpu=self.gpus > 0)
        os.close(handle)
        name = ADAPTER if find_source(model).adapter else model
        served = ServedModel(f"http://127.0.0.1:{port}", name, process, Path(log))
        _wait(served, process, Path(log))
        return served


def serving_of(settings: ActorsConfig, precision: str, use_gpu: bool, memory: float = 0.9) -> Serving | None:
    """How the models of a stage are served; None with `engine=transformers`.

    Args:
        memory: share of each GPU's memory for the server.
    """
    if settings.engine != "vllm":
        return None
    return Serving(settings.vllm, settings.gpus_per_actor if use_gpu else 0, precision, memory)


def arguments(serving: Serving, model: str, max_length: int, port: int) -> list[str]:
    """The command line of `vllm serve` for a whole model, or for an adapter's base with the adapter.

    Raises:
        UserError: an adapter that vLLM does not serve.
    """
    options: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "dtype": serving.precision,
        "max-model-len": max_length + 1,  # and the one token that every question generates
        "max-logprobs": MOST_TOKENS,
        "generation-config": "vllm",
    }
    if serving.gpus:
        options |= {"tensor-parallel-size": serving.gpus, "gpu-memory-utilization": serving.memory}
    source, base, flags = find_source(model), model, ["--enable-scale-out"]
    if not serving.gpus:
        flags.append("--enforce-eager")  # what it would compile pays on GPUs
    if source.adapter:
        base, revision = adapter_base(source)
        room = _room(Path(source.path))
        options |= {"tokenizer": model, "max-lora-rank": room, "lora-modules": f"{ADAPTER}={model}"}
        options |= {"revision": revision} if revision else {}
        flags.append("--enable-lora")
    return [base, *(part for key, value in options.items() for part in (f"--{key}", str(value))), *flags]


def _room(folder: Path) -> int:
    """The smallest rank of vLLM's that an adapter fits in."""
    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max(about.get("r", 0), *(about.get("rank_pattern") or {}).values(), 1)
    more = [key for key in ("use_dora", "modules_to_save") if about.get(key)]
    more += ["bias"] if about.get("bias", "none") != "none" else []
    if about["peft_type"] != "LORA" or rank > _RANKS[-1] or more:
        what = f"{about['peft_type']} of rank {rank}" + "".join(f" with {key}" for key in more)
        raise UserError(
            f"the adapter {folder} is {what}, and vLLM serves plain LoRA of rank {_RANKS[-1]} at most: merge it"
            " (rosepo merge), or use engine=transformers"
        )
    return next(size for size in _RANKS if size >= rank)


def _start(command: list[str], log: int, on_gpu: bool) -> subprocess.Popen[bytes]:
    # What leads an interpreter to this environment's packages would lead vLLM's to the wrong ones.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not on_gpu:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by itself vLLM takes half of the memory
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )


def _wait(served: ServedModel, process: subprocess.Popen[bytes], log: Path) -> None:
    started = time.monotonic()
    while not answers(served.address):
        late = time.monotonic() - started > PATIENCE
        if process.poll() is not None or late:
            served.close()
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
            told = next((line for line in reversed(lines) if "Error" in line), lines[-1])
            what = f"has not answered after {PATIENCE / 60:.0f} minutes" if late else f"ended with {process.returncode}"
            raise StageError(f"vLLM {what}: {told.strip()[-1000:]} (its log: {log})")
        time.sleep(0.5)
