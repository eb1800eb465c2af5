#!/usr/bin/env bash
# A Slurm of several nodes on this machine, for tests: no systemd, no database, nothing left after `stop`.
#   tools/slurm.sh install        Debian's slurm-wlm and munge
#   tools/slurm.sh start [NODES]  2 nodes if not said otherwise
#   tools/slurm.sh stop
# It must be root's: slurmctld and slurmd run as root, and /etc/slurm/slurm.conf links to the test's own file, because
# the executor plugin takes SLURM_CONF from the environment of its jobs. An own slurm.conf there is never touched.
# SLURM_TEST_DIR (default ${TMPDIR:-/tmp}/slurm-test), SLURM_TEST_PORT (26817), SLURM_TEST_MEM_MB (a node's, 4000),
# SLURM_TEST_CPUS (a node's, those of this machine) and SLURM_TEST_GPUS=1 (each node claims a GPU, which is
# /dev/null) change what their names say.
set -euo pipefail

folder=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/slurm-test}
port=${SLURM_TEST_PORT:-26817}
conf=$folder/slurm.conf
linked=/etc/slurm/slurm.conf
host=$(hostname -s)

fail() {
    printf 'tools/slurm.sh: %s\n' "$*" >&2
    exit 1
}

write_conf() {
    local nodes=$1 gres=() number cpus
    cpus=${SLURM_TEST_CPUS:-$(env -u OMP_NUM_THREADS nproc)}  # which would be taken for their number
    if [[ ${SLURM_TEST_GPUS:-0} -gt 0 ]]; then gres=(Gres=gpu:1); fi
    cat >"$conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/munge.sock
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobcomp.txt
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
DefMemPerCPU=1000
ReturnToService=2
MinJobAge=300
KillWait=3
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
${gres:+GresTypes=gpu}
END
    for ((number = 1; number <= nodes; number++)); do
        printf 'NodeName=n%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%s CPUs=%s RealMemory=%s %s State=UNKNOWN\n' \
            "$number" "$host" $((port + number)) "$cpus" "${SLURM_TEST_MEM_MB:-4000}" "${gres[*]:-}" >>"$conf"
    done
    printf 'PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n' >>"$conf"
    rm -f "$folder/gres.conf"
    for ((number = 1; number <= nodes; number++)); do
        [[ -z ${gres[*]:-} ]] || printf 'NodeName=n%s Name=gpu File=/dev/null\n' "$number" >>"$folder/gres.conf"
    done
}

install() {
    command -v apt-get >/dev/null || fail "no apt-get here; install Slurm (slurmctld, slurmd, sbatch) and munge otherwise"
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends slurm-wlm munge
}

start() {
    local nodes=${1:-2} number
    [[ $(id -u) == 0 ]] || fail "must be root's; use sudo, or a container"
    command -v slurmctld slurmd munged >/dev/null || fail "Slurm or munge is not installed; run: tools/slurm.sh install"
    if [[ -e $linked && $(readlink "$linked") != "$conf" ]]; then fail "$linked is another Slurm's; not touched"; fi
    if [[ -s $folder/slurmctld.pid ]] && kill -0 "$(<"$folder/slurmctld.pid")" 2>/dev/null; then
        fail "runs already; tools/slurm.sh stop ends it"
    fi
    mkdir -p "$folder/munge" "$folder/state" "$(dirname "$linked")"
    for ((number = 1; number <= nodes; number++)); do mkdir -p "$folder/spool.n$number"; done
    write_conf "$nodes"
    ln -sfn "$conf" "$linked"
    # munged refuses folders that others can write in, so it is forced.
    [[ -s $folder/munge/munge.key ]] || head -c 1024 /dev/urandom >"$folder/munge/munge.key"
    chmod 700 "$folder/munge"
    chmod 600 "$folder/munge/munge.key"
    munged --force --socket="$folder/munge/munge.sock" --key-file="$folder/munge/munge.key" \
        --log-file="$folder/munge/munged.log" --pid-file="$folder/munge/munged.pid" --seed-file="$folder/munge/munge.seed"
    slurmctld -c -f "$conf"
    for ((number = 1; number <= nodes; number++)); do slurmd -f "$conf" -N "n$number"; done
    for ((number = 0; number < 100; number++)); do
        if [[ $(sinfo -h -t idle -o %D 2>/dev/null) == "$nodes" ]]; then return; fi
        sleep 0.2
    done
    sinfo >&2 || true
    fail "the nodes are not idle after 20 s; $folder has the logs"
}

stop() {
    local file number
    # Jobs first: their processes outlive the daemons.
    if [[ -s $folder/slurmctld.pid ]] && scancel --partition=main 2>/dev/null; then
        for ((number = 0; number < 50; number++)); do
            [[ -n $(squeue --noheader 2>/dev/null) ]] || break
            sleep 0.2
        done
    fi
    for file in "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$folder/munge/munged.pid"; do
        if [[ -s $file ]]; then kill "$(<"$file")" 2>/dev/null || true; fi
    done
    if [[ $(readlink "$linked" 2>/dev/null) == "$conf" ]]; then rm -f "$linked"; fi
}

case ${1:-} in
    install) install ;;
    start) start "${2:-2}" ;;
    stop) stop ;;
    *)
        sed -n '2,5s/^# //p' "$0"
        exit 2
        ;;
esac
