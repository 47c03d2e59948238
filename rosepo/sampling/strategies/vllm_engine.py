"""Free generation by vLLM in place of the constrained search: the policy writes, and its answers are matched to titles.

`VllmDecoder` has the `top_k` of `rosepo.lm.titles.beam_search.Decoder`, and another meaning: its answers are the best
titles among those that the policy happened to write, not the best of the catalogue, and there may be fewer than asked
for. The mixture fills such places with its fallback and counts them as `fallbacks`.

`VllmDecoder` itself is not covered by tests: it needs a GPU and vLLM, and was written from the sources of vLLM 0.29 and
0.33. Everything else here is.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rosepo.config import PairsConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.model.adapters import adapter_base
from rosepo.lm.model.model_source import find_source
from rosepo.lm.titles.title_match import completions_index, match_titles
from rosepo.utils.errors import UserError

SAMPLES = 4
"""Samples for each answer asked for: repeated, excluded and unknown titles fall away."""
MIN_SAMPLES = 32
"""Fewer may all be titles of the history."""
MEMORY = 0.5
"""Share of the GPU's memory that vLLM takes: the reference and the oracle are on the same GPU."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA adapters that vLLM has room for


def check_engine(pairs: PairsConfig, device: str) -> None:
    """Refuse `pairs.engine=vllm` where it cannot run. All nodes have the driver's packages.

    Raises:
        UserError: without GPUs, or without vLLM; with the remedy.
    """
    if pairs.engine != "vllm":
        return
    if device != "cuda":
        raise UserError(
            f"pairs.engine=vllm generates on GPUs, and with pairs.gpu={pairs.gpu} the stage uses none: set"
            " pairs.gpu=yes on a cluster that has them, or use pairs.engine=transformers"
        )
    if find_spec("vllm") is None:
        raise UserError(
            "pairs.engine=vllm needs the package vllm, which is not installed: put it into the environment of every"
            " node (docs/method.md says what stands in the way), or use pairs.engine=transformers"
        )


def prompt_seed(seed: int, prompt: np.ndarray) -> int:
    """Seed of the samples after a prompt, in [0, 2^62): of its tokens and `seed` alone, not of its batch or worker."""
    tokens = np.asarray(prompt, dtype="<i8").tobytes()
    return int.from_bytes(blake2b(f"{seed}/".encode() + tokens, digest_size=8).digest(), "little") >> 2


def engine_options(folder: Path, max_length: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for a model folder: the whole model, or an adapter's base with room for the adapter.

    Raises:
        UserError: no model folder, or an adapter of a kind or rank that vLLM does not serve.
    """
    options = {
        "model": str(folder),
        "tokenizer": str(folder),
        "max_model_len": max_length,
        "gpu_memory_utilization": MEMORY,
        "generation_config": "vllm",  # the answers' settings are set here, not by a file of the model's
    }
    source = find_source(str(folder))
    if not source.adapter:
        return options
    base, revision = adapter_base(source)
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max(adapter.get("r", 0), *(adapter.get("rank_pattern") or {}).values(), 1)
    if adapter["peft_type"] != "LORA" or rank > _RANKS[-1]:
        raise UserError(
            f"the adapter {folder} is {adapter['peft_type']} of rank {rank}, and vLLM serves LoRA of rank {_RANKS[-1]}"
            " at most: use pairs.engine=transformers"
        )
    room = next(size for size in _RANKS if size >= rank)
    return options | {"model": base, "revision": revision, "enable_lora": True, "max_lora_rank": room}


class VllmDecoder:
    """Samples from the policy with vLLM, at temperature 1, and keeps what is a title. Not covered by tests.

    Args:
        folder: of the policy.
        builder: its prompts; its completions are the titles that can be found.
        seed: of the samples, with each prompt's tokens; see `prompt_seed`.

    Attributes:
        counts: `generated` answers since the last look, and `unknown` ones among them, which are no title.
    """

    def __init__(self, folder: Path, builder: PromptBuilder, seed: int) -> None:
        # In this process vLLM's schedule is deterministic, and it ends with the actor.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        options = engine_options(folder, builder.max_length)
        self.engine = LLM(**options)
        self.adapter = LoRARequest("policy", 1, str(folder)) if "enable_lora" in options else None
        self.builder, self.seed, self.index = builder, seed, completions_index(builder)
        self.counts: Counter[str] = Counter()

    def top_k(
        self, prompts: Sequence[np.ndarray], excluded: Sequence[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Arguments and result as those of `Decoder.top_k`; fewer than `k` answers where no more were written."""
        from vllm import SamplingParams, TokensPrompt

        self.engine.reset_prefix_cache()  # what came before shall not decide how a prompt is computed
        settings = [
            SamplingParams(
                n=max(MIN_SAMPLES, SAMPLES * k),
                temperature=1.0,
                seed=prompt_seed(self.seed, prompt),
                max_tokens=self.builder.longest_completion,
                stop_token_ids=[self.builder.stop_id],
                logprobs=0,  # of the sampled tokens alone; without it there is no cumulative one
                detokenize=False,
            )
            for prompt in prompts
        ]
        tokens = [TokensPrompt(prompt_token_ids=prompt.tolist()) for prompt in prompts]
        outputs = self.engine.generate(tokens, settings, use_tqdm=False, lora_request=self.adapter)
        generated = [[answer.token_ids for answer in output.outputs] for output in outputs]
        logps = [[answer.cumulative_logprob for answer in output.outputs] for output in outputs]
        items, scores, unknown = match_titles(generated, logps, self.index, excluded, k)
        self.counts.update(generated=sum(map(len, generated)), unknown=unknown)
        return items, scores
