#!/bin/bash
# dpo-llama3-8b-1121-7f3a: 8 ranks on this machine.
# It plays the part of the batch script: it opens an attempt, runs the ranks, and hands their exit status to the
# restart policy, whose answers 90 and 95 mean: once more.
# shellcheck disable=SC2016 # values stand in single quotes so that nothing in them expands
set -uo pipefail
trap : TERM INT USR2 # the ranks get these; this script goes on to the restart policy

cd -- /home/user/project || exit 93

# After all that a site and a recipe may set: nothing of it stands for these two.
run=/runs/dpo-llama3-8b-1121-7f3a
if [ ! -d "$run/code" ]; then
  echo "mmlaunch: $run is gone: this job has no run" >&2
  exit 93
fi
python=/opt/venv/bin/python
# The snapshot that was taken at submission comes first: a later attempt never sees edited code.
export PYTHONPATH="$run/code${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export MMLAUNCH_RUN="$run" MMLAUNCH_LEAD=60 MMLAUNCH_SUBMISSION="${1:-0}"
export MMLAUNCH_MEMORY="/dev/shm/mmlaunch-$UID/${run##*/}-${SLURM_JOB_ID:-0}-${SLURM_RESTART_COUNT:-0}-$$"

rank=(/opt/venv/bin/python -u -m mmlaunch.schedulers.rank "$run/job")
export SUBMITIT_EXECUTOR=local SUBMITIT_LOCAL_NTASKS=8 SUBMITIT_LOCAL_JOB_ID=$$ MMLAUNCH_IN_JOB=1
export SUBMITIT_LOCAL_NODEID=0 SUBMITIT_LOCAL_JOB_NUM_NODES=1 SUBMITIT_STDERR_TO_STDOUT=1 SUBMITIT_LOCAL_WITH_SHELL=''
export SUBMITIT_LOCAL_COMMAND='' SUBMITIT_LOCAL_TIMEOUT_S=86400 SUBMITIT_LOCAL_SIGNAL_DELAY_S=60
# The attempts at this run, until the restart policy wants no other one.
attempt() {
  local opened verdict
  while :; do
    opened="$("$python" -m mmlaunch.attempt open "$run" "$0" "$MMLAUNCH_SUBMISSION")" || return 93
    read -r MMLAUNCH_ATTEMPT MASTER_PORT <<<"$opened"
    export MMLAUNCH_ATTEMPT MASTER_PORT MASTER_ADDR=127.0.0.1
    "$python" -m mmlaunch.submit.ranks "$run/attempts/$MMLAUNCH_ATTEMPT" "${rank[@]}"
    "$python" -m mmlaunch.attempt close "$run" "$MMLAUNCH_ATTEMPT" $? "$MMLAUNCH_SUBMISSION"
    verdict=$?
    [ "$verdict" -eq 90 ] || [ "$verdict" -eq 95 ] || return "$verdict"
  done
}

attempt
exit $?
