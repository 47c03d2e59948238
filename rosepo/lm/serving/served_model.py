"""A model behind a vLLM server: log-probabilities of next tokens, over HTTP.

What is asked are the raw log-probabilities, of the softmax over the whole vocabulary, of tokens that are named
(`logprob_token_ids` of `/inference/v1/generate`, vLLM 0.32); the prompts' keys and values stay in the server's prefix
cache from one question to the next.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from rosepo.utils.errors import StageError, UserError

MOST_TOKENS = 128
"""Tokens that vLLM tells of in one answer (MAX_LOGPROB_TOKEN_IDS)."""
AT_ONCE = 64
"""Questions on their way at once: vLLM puts them into batches."""
GOODBYE = 30.0
"""Seconds that a server may take to end."""
_GENERATE = "/inference/v1/generate"
_FLAGS = f"--enable-scale-out --max-logprobs {MOST_TOKENS}"


class ServedModel:
    """What a server serves under one name.

    Args:
        address: of the server, http(s).
        name: of the model there.
        process: the server, where it was started here: it ends with `close`.
        log: of the server, removed with it.
    """

    def __init__(
        self, address: str, name: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
    ) -> None:
        self.address, self.name, self._process, self._log = address.rstrip("/"), name, process, log
        retry = urllib3.Retry(3, backoff_factor=0.5, status_forcelist=(502, 503, 504), allowed_methods=None)
        self._http = urllib3.PoolManager(maxsize=AT_ONCE, retries=retry)
        self._questions = ThreadPoolExecutor(AT_ONCE, "rosepo-vllm")
        if process is not None:
            atexit.register(self.close)

    @classmethod
    def attached(cls, address: str, model: str) -> ServedModel:
        """A server that somebody else started.

        Raises:
            UserError: nothing answers, another model is served there, or by other flags than are needed.
        """
        if not answers(address):
            raise UserError(f"nothing answers at {address}: start `vllm serve {model} {_FLAGS}` there")
        found = json.loads(urllib3.request("GET", f"{address.rstrip('/')}/v1/models").data)["data"]
        wanted = {model, str(Path(model).expanduser().resolve())}
        names = [str(one["id"]) for one in found if wanted & {str(one["id"]), str(one.get("root"))}]
        if not names:
            served = ", ".join(str(one["id"]) for one in found)
            raise UserError(f"the server at {address} serves {served}, and {model} is asked for: serve that")
        served_model = cls(address, names[-1])
        try:
            served_model.next_logps([np.array([0])], [np.arange(MOST_TOKENS)])
        except StageError as error:
            raise UserError(f"{error}: start the server with {_FLAGS}, vLLM 0.32 or later") from error
        return served_model

    def next_logps(self, prompts: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
        """log π(token | prompt), natural logarithm over the full vocabulary.

        Args:
            prompts: N int arrays of token ids, none empty.
            tokens: for each the tokens asked about, int arrays.

        Returns:
            N arrays float32, as long as those of `tokens`.

        Raises:
            StageError: the server refused, or did not answer.
        """
        asked = [
            (prompt.tolist(), part.tolist())
            for prompt, all_of in zip(prompts, tokens, strict=True)
            for part in np.split(all_of, range(MOST_TOKENS, len(all_of), MOST_TOKENS))
            if len(part)
        ]
        told = np.concatenate([np.zeros(0, np.float32), *self._questions.map(lambda one: self._ask(*one), asked)])
        return np.split(told, np.cumsum([len(part) for part in tokens])[:-1])

    def _ask(self, prompt: list[int], tokens: list[int]) -> np.ndarray:
        # The token that is generated takes a place among those that are told: it has to be one of them.
        settings = {"max_tokens": 1, "temperature": 0.0, "allowed_token_ids": tokens}
        settings |= {"logprobs": len(tokens), "logprob_token_ids": tokens}
        question = {"model": self.name, "token_ids": prompt, "sampling_params": settings}
        try:
            answer = self._http.request("POST", self.address + _GENERATE, json=question, timeout=600.0)
            body: dict[str, Any] = json.loads(answer.data)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise StageError(f"the vLLM server at {self.address} does not answer: {error}{self._ended()}") from error
        if answer.status != 200:
            raise StageError(f"the vLLM server at {self.address} refused: {_why(body)}")
        told = {one["token_id"]: one["logprob"] for one in body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        if not told.keys() >= set(tokens):
            raise StageError(f"the vLLM server at {self.address} does not tell of the tokens that were asked about")
        return np.array([told[token] for token in tokens], dtype=np.float32)

    def _ended(self) -> str:
        code = None if self._process is None else self._process.poll()
        return "" if code is None else f"; it ended with {code} (its log: {self._log})"

    def close(self) -> None:
        """End the server, where it was started here."""
        if self._process is None or self._process.poll() is not None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GOODBYE)
                break
        if self._log is not None:
            self._log.unlink(missing_ok=True)


def _why(body: dict[str, Any]) -> str:
    error = body.get("error", body)
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def answers(address: str) -> bool:
    """Whether a server says that it is well."""
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        return urllib3.request("GET", f"{address.rstrip('/')}/health", retries=False, timeout=10.0).status == 200
    return False
