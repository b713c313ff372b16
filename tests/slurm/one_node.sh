#!/usr/bin/env bash
# SLURM on this machine alone, for developers and CI: `one_node.sh up|down|status`, as root; no systemd needed.
#
# `up` prints the line that makes sbatch and the rest use it: eval "$(tests/slurm/one_node.sh up)". A second `up` finds
# it running. All that it writes is in one folder (RECALLBENCH_SLURM, by default in /tmp), which `down` removes.
# Accounting is left out (it needs a database), so sacct has nothing to tell.
set -euo pipefail

folder=${RECALLBENCH_SLURM:-/tmp/recallbench-slurm}
port=${RECALLBENCH_SLURM_PORT:-16817}
export SLURM_CONF=$folder/slurm.conf

install_missing() {
  if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then return; fi
  command -v apt-get >/dev/null || { echo "slurmctld, slurmd or munged is missing, and so is apt-get" >&2; exit 1; }
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge; } >&2
}

configure() {
  local host cpus
  host=$(hostname -s)
  cpus=$(nproc)
  mkdir -p "$folder"/{state,spool,munge}
  # config_overrides: four small jobs at a time on any machine. cred_expire: what is requeued waits that long.
  # What is missing when slurmd comes back is queued again once it is older than MessageTimeout and BatchStartTimeout.
  cat >"$SLURM_CONF" <<CONF
ClusterName=recallbench
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
MessageTimeout=5
BatchStartTimeout=1
KillWait=10
NodeName=$host NodeAddr=127.0.0.1 CPUs=$((cpus < 4 ? 4 : cpus)) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES State=UP
CONF
}

start_munged() {
  [[ -s $folder/munge/key ]] || head -c 1024 /dev/urandom >"$folder/munge/key"
  chown -R munge: "$folder/munge"
  chmod 755 "$folder" "$folder/munge"
  chmod 400 "$folder/munge/key"
  setpriv --reuid=munge --regid=munge --clear-groups munged --key-file="$folder/munge/key" \
    --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" \
    --seed-file="$folder/munge/seed" >&2
}

alive() { [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null; }

ready() { [[ $(timeout 5 sinfo --noheader --format=%T 2>/dev/null) =~ ^(idle|mixed|allocated)$ ]]; }

up() {
  [[ $EUID == 0 ]] || { echo "SLURM on one node must be started as root" >&2; exit 1; }
  install_missing
  configure
  alive "$folder/munge/pid" || start_munged
  alive "$folder/slurmctld.pid" || slurmctld -f "$SLURM_CONF" >&2
  alive "$folder/slurmd.pid" || slurmd -f "$SLURM_CONF" >&2
  for _ in $(seq 150); do
    if ready; then echo "export SLURM_CONF=$SLURM_CONF" && return; fi
    sleep 0.2
  done
  tail "$folder"/*.log >&2
  echo "SLURM did not come up; its logs are in $folder" >&2
  exit 1
}

stop() {
  if alive "$1"; then
    local pid
    pid=$(<"$1")
    kill "$pid"
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || return 0
      sleep 0.1
    done
    kill -9 "$pid"
  fi
}

down() {
  if alive "$folder/slurmctld.pid"; then
    scancel --quiet --user=root || true
    for _ in $(seq 150); do
      [[ -n $(squeue --noheader 2>/dev/null) ]] || break
      sleep 0.1
    done
  fi
  stop "$folder/slurmd.pid"
  stop "$folder/slurmctld.pid"
  stop "$folder/munge/pid"
  rm -rf "$folder"
}

case ${1-} in
  up) up ;;
  down) down ;;
  status) ready && sinfo ;;
  *) echo "usage: $0 up|down|status" >&2; exit 2 ;;
esac
