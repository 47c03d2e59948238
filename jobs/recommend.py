"""Top-k titles for histories, as a job.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/recommend.py --model /shared/runs/demo/aligned --file histories.jsonl --json

Takes the options of `rosepo recommend`. Exit code: 0 done, 2 bad input or configuration, 1 failed.
"""

import sys

from rosepo.cli.app import main

if __name__ == "__main__":
    main(["recommend", *sys.argv[1:]])
