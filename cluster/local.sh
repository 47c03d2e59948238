#!/usr/bin/env bash
# A cluster of one on this machine, to try what `ray job submit` does before a real one:
#   cluster/local.sh start              Ray head on loopback, 4 CPUs to schedule
#   cluster/local.sh submit run --config jobs/configs/demo.yaml --out "$PWD/runs/job"
#   cluster/local.sh stop
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "${VENV:-.venv}" && pwd)/bin
port=${DASHBOARD_PORT:-8265}
# Ray keeps the token of this user in ~/.ray/auth_token; every client has to be told to send it.
export RAY_AUTH_MODE=token

case "${1:-}" in
  start)
    "$bin/ray" get-auth-token --generate >/dev/null
    RAY_JOB_STOP_WAIT_TIME_S=30 "$bin/ray" start --head --port=6379 --node-ip-address=127.0.0.1 \
      --dashboard-host=127.0.0.1 --dashboard-port="$port" --num-cpus="${CPUS:-4}" --disable-usage-stats
    ;;
  submit)
    job=${2:?"a job: $(cd jobs && ls ./*.py | tr '\n' ' ')"}
    shift 2
    # The job runs in a copy of this folder, which Ray removes: --out has to be an absolute path.
    "$bin/ray" job submit --address "http://127.0.0.1:$port" --working-dir . --runtime-env jobs/runtime_env.yaml -- \
      "$bin/python" "jobs/$job.py" "$@"
    ;;
  stop)
    "$bin/ray" stop
    ;;
  *)
    grep '^#  ' "$0"
    exit 2
    ;;
esac
