"""All runs of suites of experiments, as a job.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/experiments.py jobs/configs/experiments/essential.yaml --out /shared/runs/experiments

Takes the options of `rosepo experiments`. Exit code: 0 done, 2 bad input or configuration, 1 failed.
"""

import sys

from rosepo.cli.app import main

if __name__ == "__main__":
    main(["experiments", *sys.argv[1:]])
