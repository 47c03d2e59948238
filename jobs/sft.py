"""Supervised fine-tuning, as a job.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/sft.py --config jobs/configs/demo.yaml --out /shared/runs/demo

Takes the options of `rosepo sft`. Exit code: 0 done, 2 bad input or configuration, 1 failed.
"""

import sys

from rosepo.cli.app import main

if __name__ == "__main__":
    main(["sft", *sys.argv[1:]])
