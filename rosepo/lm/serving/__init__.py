"""Language models that vLLM runs: in an environment and processes of its own, asked over HTTP."""
