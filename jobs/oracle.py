"""The preference oracle, as a job.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/oracle.py --config jobs/configs/demo.yaml --out /shared/runs/demo

Takes the options of `rosepo oracle`. Exit code: 0 done, 2 bad input or configuration, 1 failed.
"""

import sys

from rosepo.cli.app import main

if __name__ == "__main__":
    main(["oracle", *sys.argv[1:]])
