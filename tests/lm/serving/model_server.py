"""A server with the face of vLLM's, over a model in Transformers, where vLLM itself is not installed.

    python tests/lm/serving/model_server.py serve FOLDER --port N [whatever else `vllm serve` is given]

It refuses what vLLM 0.32 refuses: more tokens than its limits, and flags without which the question is not answered.
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

STAND_IN = f"{sys.executable} {Path(__file__).resolve()}"
"""As settings name the command."""
MOST = 128


class Handler(BaseHTTPRequestHandler):
    """Answers one question after another with the model of the server."""

    server: ModelServer

    def do_GET(self) -> None:
        served = {"id": self.server.name, "root": self.server.root}
        self._answer(200, {"data": [served]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self._answer(200, self.server.generate(question))
        except ValueError as error:
            self._answer(400, {"error": {"message": str(error)}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *said: Any) -> None:
        pass


class ModelServer(ThreadingHTTPServer):
    """Serves a model in eval mode.

    Attributes:
        questions: that were answered.
    """

    daemon_threads = True

    def __init__(self, model: Any, name: str, root: str, most: int = MOST, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.name, self.root, self.most, self.questions = model, name, root, most, 0

    @torch.inference_mode()
    def generate(self, question: dict[str, Any]) -> dict[str, Any]:
        settings = question["sampling_params"]
        tokens, allowed = settings["logprob_token_ids"], settings["allowed_token_ids"]
        if question["model"] != self.name:
            raise ValueError(f"The model `{question['model']}` does not exist.")
        if settings["logprobs"] != len(tokens) or len(tokens) > MOST:
            raise ValueError("logprobs must equal len(logprob_token_ids)")
        if len(tokens) > self.most:
            raise ValueError(f"Requested sample logprobs of {len(tokens)}, which is greater than max allowed")
        self.questions += 1
        logits = self.model(torch.tensor([question["token_ids"]])).logits[0, -1].float()
        logps = logits.log_softmax(-1)
        sampled = allowed[int(logps[allowed].argmax())]
        # The sampled token comes first and takes a place: whoever asks for others alone misses the last of them.
        told = [sampled, *(token for token in tokens if token != sampled)][: len(tokens)]
        top = [{"token_id": token, "logprob": max(float(logps[token]), -9999.0)} for token in told]
        return {"choices": [{"token_ids": [sampled], "logprobs": {"content": [{"top_logprobs": top}]}}]}


def main() -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--max-logprobs", type=int, default=20)
    parser.add_argument("--enable-scale-out", action="store_true", required=True)
    parser.add_argument("--lora-modules", default="")
    given, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).eval()
    name = root = given.model
    if given.lora_modules:
        name, root = given.lora_modules.split("=")
        model = PeftModel.from_pretrained(model, root).eval()
    ModelServer(model, name, root, given.max_logprobs, given.port).serve_forever()


if __name__ == "__main__":
    main()
