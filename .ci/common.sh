# What the verbs of .ci share: sourced, not run. A verb works from a fresh clone and leaves
# .venv, .released (taskiq 0.13.0, to compare with) and otherwise only temporary files, which it removes.
# shellcheck shell=bash
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Keep what the tools write beside the code out of the checkout.
export HYPOTHESIS_STORAGE_DIRECTORY="$scratch/hypothesis"
export MYPY_CACHE_DIR="$scratch/mypy"
export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -o cache_dir='$scratch/pytest'"
export PYTHONPYCACHEPREFIX="$scratch/bytecode"
export RUFF_CACHE_DIR="$scratch/ruff"

step() {
    printf '\n==> %s\n' "$1"
}

# The fenced block of README.md that follows "<!-- command: NAME -->".
readme_command() {
    awk -v marker="<!-- command: $1 -->" '
        inside && /^[ ]*```/ { complete = 1; exit }
        inside { print; next }
        found && /^[ ]*```/ { inside = 1 }
        index($0, marker) { found = 1 }
        END { if (!complete) exit 1 }
    ' README.md || {
        echo "README.md has no fenced block after <!-- command: $1 -->" >&2
        return 1
    }
}

# A shell of its own that stops at the first failing line, as a reader would.
run_command() {
    bash -euo pipefail -c "$1"
}

# The test command of README.md without the run itself: what sets up .venv.
tests=".venv/bin/pytest -n auto --dist worksteal"
readme_setup() {
    local command
    command=$(readme_command test)
    [[ $command == *" && $tests" ]] || {
        echo "the test command of README.md does not end in '&& $tests'" >&2
        return 1
    }
    printf '%s' "${command% && "$tests"}"
}

# .venv as README's test command makes it, and the groups of pyproject.toml that are named.
need() {
    [[ -x ${tests%% *} ]] || {
        step "set-up: the test command of README.md, without its run"
        run_command "$(readme_setup)"
    }
    local group
    for group in "$@"; do
        .venv/bin/pip install -q --group "$group"
    done
}

# Start the servers of the tests that are installed here and do not answer, as after a restart of the machine.
# Tests of one that is not there are skipped, which is a failure with CI=true.
start_servers() {
    local port service attempt
    while read -r port service; do
        answers "$port" || [[ ! -x /etc/init.d/$service ]] || {
            step "servers: $service does not answer at port $port, and is started"
            service "$service" start || true
            for ((attempt = 0; attempt < 60; attempt++)); do
                answers "$port" && break
                sleep 1
            done
        }
    done <<'SERVERS'
5672 rabbitmq-server
6379 redis-server
5432 postgresql
SERVERS
}

answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
