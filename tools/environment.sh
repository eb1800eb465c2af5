#!/usr/bin/env bash
# Makes .venv from requirements.lock, only when it is missing, unfinished or older than the lock.
# Usage: tools/environment.sh PYTHON [TORCH_INDEX]   (called by make)
#        tools/environment.sh --peers PYTHON         .venv-peers from requirements-peers.lock
#        tools/environment.sh --site PYTHON          .venv-site from the extra `docs` of pyproject.toml
#        tools/environment.sh --slurm                the extra `slurm` of pyproject.toml, into .venv
set -euo pipefail

CUDA='triton|nvidia-.*|cuda-.*'
TORCH='torch|torchvision'
stamp=.venv/installed-from # written last: without it the installation is not whole

fail() {
    printf 'ptq2themoon: %s\n' "$*" >&2
    exit 1
}

# entries 1 REGEX: the lock's entries of these packages, with their hashes; entries 0 REGEX: all the others.
entries() { awk -v want="$1" -v names="^($2)==" '/^[^ #]/ {hit = ($0 ~ names)} hit == want' requirements.lock; }

# The entries that are installed with their hashes checked, besides pip and setuptools.
locked() {
    if [[ -n $1 ]]; then
        entries 0 "pip|setuptools|$TORCH|$CUDA"
    elif [[ $(uname -s) == Linux ]]; then
        entries 0 'pip|setuptools'
    else # only Linux has CUDA packages
        entries 0 "pip|setuptools|$CUDA"
    fi
}

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

# The interpreter behind PYTHON, not a virtual environment's: .venv itself may be the active one.
base_python() {
    local found version
    found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys._base_executable)' 2>/dev/null) ||
        fail "Python 3.11 is needed, and '$1' does not run; install it or name it: make env PYTHON=/path/to/python3.11"
    version=${found%% *}
    [[ $version == 3.11 ]] ||
        fail "Python 3.11 is needed, and '$1' is $version; name another: make env PYTHON=/path/to/python3.11"
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "'$1' cannot make virtual environments; on Debian or Ubuntu: apt install python3.11-venv"
    printf '%s\n' "${found#* }"
}

contents() { # what the stamp says: an environment can't be moved, so its place counts too
    printf '%s\ntorch: %s\n' "$PWD" "${1:-requirements.lock}"
    cat requirements.lock
}

gpu_seen() { [[ -e /dev/nvidiactl || -e /dev/dxg ]] || command -v nvidia-smi >/dev/null; }

hint() { # of the smaller environment, where the larger one is of no use
    [[ $(uname -s) == Linux ]] || return 0 # only Linux has CUDA packages
    gpu_seen || printf '%s\n' 'No GPU is seen here. A torch for CPUs leaves out the CUDA packages, 4 of the 6 GB:' \
        '    make env TORCH_INDEX=https://download.pytorch.org/whl/cpu'
}

install() {
    local index=$1 python=$2 start=$SECONDS
    if [[ -n $index ]]; then
        printf 'Installing the environment into .venv; torch from %s\n' "$index"
    else
        printf 'Installing the environment into .venv: about 3 GB to download, 6 GB on disk, some minutes.\n'
        hint
    fi
    rm -f "$stamp" # first: a removal that is interrupted must not look like an environment
    rm -rf .venv
    "$python" -m venv .venv
    printf '%s' "$index" >.venv/torch-index
    pip install --require-hashes --no-deps -r <(entries 1 'pip|setuptools')
    pip install --require-hashes --no-deps --no-build-isolation -r <(locked "$index")
    if [[ -n $index ]]; then # other files than the lock's, so no hashes; same versions
        # shellcheck disable=SC2046
        pip install --index-url "$index" $(entries 1 "$TORCH" | awk '/==/ {print $1}')
    fi
    pip check
    contents "$index" >"$stamp.part"
    mv "$stamp.part" "$stamp"
    printf 'The environment is ready (%d s).\n' $((SECONDS - start))
}

# What an extra of pyproject.toml asks for, one exact version a line.
extra() {
    "$1" -c 'import sys, tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]]))' "$2"
}

# What gives jobs to Slurm; all that it needs besides is in .venv already, which `pip check` confirms.
slurm() {
    [[ -x .venv/bin/python ]] || fail "no environment here yet; run: make env"
    pip install --no-deps -r <(extra .venv/bin/python slurm)
    pip check
}

# What builds the documentation site: exact versions of what is asked for, nothing of ours, which is read from src.
site() {
    local stamp=.venv-site/installed-from base pins
    base=$(base_python "$1")
    pins=$(extra "$base" docs)
    if [[ -f $stamp && $(<"$stamp") == "$pins" ]] && .venv-site/bin/python -c ''; then
        printf 'The environment of the site is up to date.\n'
        return
    fi
    rm -f "$stamp"
    rm -rf .venv-site
    "$base" -m venv .venv-site
    .venv-site/bin/python -m pip --disable-pip-version-check install -r <(printf '%s\n' "$pins")
    printf '%s\n' "$pins" >"$stamp.part"
    mv "$stamp.part" "$stamp"
    printf 'The environment of the site is ready.\n'
}

# The other tools of the benchmark: all of one lock, nothing of ours, which is read from src.
peers() {
    local stamp=.venv-peers/installed-from base
    if cmp -s requirements-peers.lock "$stamp" && .venv-peers/bin/python -c ''; then
        printf 'The environment of the other tools is up to date.\n'
        return
    fi
    base=$(base_python "$1")
    rm -f "$stamp"
    rm -rf .venv-peers
    "$base" -m venv .venv-peers
    .venv-peers/bin/python -m pip --disable-pip-version-check install --require-hashes --no-deps \
        -r requirements-peers.lock
    .venv-peers/bin/python -m pip --disable-pip-version-check check
    cp requirements-peers.lock "$stamp.part"
    mv "$stamp.part" "$stamp"
    printf 'The environment of the other tools is ready.\n'
}

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    if [[ ${1:-} == --peers ]]; then
        peers "${2:-python3.11}"
        return
    fi
    if [[ ${1:-} == --slurm ]]; then
        slurm
        return
    fi
    if [[ ${1:-} == --site ]]; then
        site "${2:-python3.11}"
        return
    fi
    local python=${1:-python3.11} index=${2:-} base
    # A choice of torch made once is kept until .venv is removed.
    if [[ -z $index && -f .venv/torch-index ]]; then index=$(<.venv/torch-index); fi
    if contents "$index" | cmp -s - "$stamp" && .venv/bin/python -c ''; then
        printf 'The environment is up to date.\n'
    else
        base=$(base_python "$python")
        install "$index" "$base"
    fi
    if [[ pyproject.toml -nt .venv/project ]]; then
        pip install --quiet --no-deps --no-index --no-build-isolation --editable .
        touch .venv/project
    fi
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
