# Sourced by env.sh and experiment.sh.

fail() {
    echo "error: $*" >&2
    exit 1
}

# Shows a command, then runs it.
run() {
    echo "+ $*" >&2
    "$@"
}
