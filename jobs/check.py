"""Everything that can be known before training, as a job.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/check.py --config jobs/configs/demo.yaml --out /shared/runs/demo

Takes the options of `rosepo check`. Exit code: 0 done, 2 bad input or configuration, 1 failed.
"""

import sys

from rosepo.cli.app import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
