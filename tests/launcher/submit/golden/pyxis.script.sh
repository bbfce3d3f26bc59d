#!/bin/bash
#SBATCH --job-name=dpo-llama3-8b-1121-7f3a
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --time=1-00:00:00
#SBATCH --partition=batch
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/runs/dpo-llama3-8b-1121-7f3a/job/batch-%j.out
# shellcheck disable=SC2016 # values stand in single quotes so that nothing in them expands
set -uo pipefail
trap : TERM USR1 USR2 # until the ranks run, a signal finds nobody to save anything

cd -- /home/user/project || exit 93

export NCCL_DEBUG=WARN
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
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
export MMLAUNCH_RUN="$run" MMLAUNCH_LEAD=120 MMLAUNCH_SUBMISSION="${1:-0}"
export MMLAUNCH_MEMORY="/dev/shm/mmlaunch-$UID/${run##*/}-${SLURM_JOB_ID:-0}-${SLURM_RESTART_COUNT:-0}-$$"

rank=(python3 -u -m mmlaunch.schedulers.rank "$run/job")
export SUBMITIT_EXECUTOR=slurm SLURM_EXPORT_ENV=ALL MMLAUNCH_IN_JOB=1

# Values that only the job knows.
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
if getent hosts "$head_node" >/dev/null; then
  MASTER_ADDR="$head_node"
else # some sites name nodes that no resolver knows
  MASTER_ADDR="$(scontrol show node "$head_node" --oneliner | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
fi
export MASTER_ADDR
# When Slurm ends this job, in seconds since 1970; nothing where it never does, or does not answer.
end_of_job() {
  local when
  when="$(scontrol show job "$SLURM_JOB_ID" --oneliner | sed -n "s/^JobId=$SLURM_JOB_ID .* EndTime=\([^ ]*\).*/\1/p")"
  [ -z "$when" ] || date -d "$when" +%s 2>/dev/null
}
MMLAUNCH_DEADLINE="$(end_of_job || true)"
export MMLAUNCH_DEADLINE
# Slurm then sends SIGTERM, and after KillWait SIGKILL, to the ranks and to this script alike. Ranks that are still there
# just before that are ended by this script, which then still has the time to ask for another attempt.
end_at_the_last_moment() {
  local end="$MMLAUNCH_DEADLINE" kill_wait=15 left nap
  trap '' TERM USR1 USR2 # which are for the ranks
  trap 'kill -HUP "$nap"; exit' HUP
  while left="$((end + ${kill_wait:-0} - 15 - $(date +%s)))" && [ "$left" -gt 0 ]; do
    sleep "$left" &
    nap=$!
    wait "$nap" # Slurm is asked at the limit: most jobs end before
    kill_wait="$(scontrol show config | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p')"
    end="$(end_of_job || true)" # a job that is suspended for a while, or given more time, ends later
    end="${end:-$MMLAUNCH_DEADLINE}"
  done
  kill -TERM "$1" # srun kills its tasks
}

# One attempt: opens it, runs the ranks, asks the restart policy what its end means.
one_attempt() {
  local opened step clock='' status
  opened="$("$python" -m mmlaunch.attempt open "$run" "$0" "$MMLAUNCH_SUBMISSION")" || return 93
  read -r MMLAUNCH_ATTEMPT MASTER_PORT <<<"$opened"
  export MMLAUNCH_ATTEMPT MASTER_PORT

  srun --cpus-per-task=8 --kill-on-bad-exit=1 --wait=0 --unbuffered \
    --output="$run/attempts/$MMLAUNCH_ATTEMPT/logs/rank-%t.out" \
  --container-image=/images/pytorch-2.13.sqsh \
  --container-mounts=/data:/data,/home:/home,/runs/dpo-llama3-8b-1121-7f3a:/runs/dpo-llama3-8b-1121-7f3a \
  --container-workdir=/home/user/project \
  --container-env=PYTHONPATH,PYTHONSAFEPATH,PYTHONUNBUFFERED,PYTHONFAULTHANDLER,OMP_NUM_THREADS,TMPDIR,TOKENIZERS_PARALLELISM,SUBMITIT_EXECUTOR,MASTER_ADDR,MASTER_PORT,MMLAUNCH_RUN,MMLAUNCH_LEAD,MMLAUNCH_DEADLINE,MMLAUNCH_MEMORY,MMLAUNCH_ATTEMPT,MMLAUNCH_SUBMISSION,NCCL_DEBUG,WANDB_API_KEY \
  --no-container-mount-home \
  "${rank[@]}" 2> >(tee -a "$run/attempts/$MMLAUNCH_ATTEMPT/logs/srun.out" >&2) &
  step=$! # what srun itself says (a node failed, a task ran out of memory) is evidence of this attempt
  # A signal that reaches only this script is passed on to the ranks; then it goes on to the restart policy.
  trap 'kill -USR2 "$step" 2>/dev/null' TERM USR1 USR2
  if [ -n "$MMLAUNCH_DEADLINE" ]; then
    end_at_the_last_moment "$step" &
    clock=$!
  fi
  wait "$step"
  status=$?
  while kill -0 "$step" 2>/dev/null; do # `wait` returns early when a trapped signal arrives: ask again
    wait "$step"
    status=$?
  done
  if [ -n "$clock" ] && ! kill -HUP "$clock" 2>/dev/null && [ "$status" -gt 94 ]; then
    status=124 # the time was over
  fi

  "$python" -m mmlaunch.attempt close "$run" "$MMLAUNCH_ATTEMPT" "$status" "$MMLAUNCH_SUBMISSION"
}

# The attempts in this job: after a rank that failed by itself, the restart policy answers 95, and its nodes go on at once.
attempt() {
  local verdict
  while :; do
    one_attempt
    verdict=$?
    [ "$verdict" -eq 95 ] || return "$verdict"
    trap : TERM USR1 USR2
  done
}

attempt
exit $?
