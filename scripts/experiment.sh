# Sourced by the scripts of the experiments: checks what they are given, goes to the repository's root, builds, and provides the
# steps. All settings come from the environment, so that paths may hold spaces:
#   DATA        folder of the labelled scans, as their owners distribute them
#   UNLABELLED  folder of other scans to pretrain on
#   SMOKE       1: the whole experiment in small, on generated phantoms
#   JOBS        runs side by side [default: 1; 2 without a GPU and with two cores or more, as one small run fills no two cores]
#   OUT         folder of the sweeps' folders [default: runs]
#   ARGS        further arguments of `pretext3d sweep`, separated by spaces
#   PRETEXT3D   the binary; without it one is built

set -e

usage_error() {
    echo "error: $*" >&2
    exit 2
}

# Relative paths are meant from where the user stands.
absolute() {
    case $1 in
    '' | /*) printf %s "$1" ;;
    *) printf %s "$PWD/$1" ;;
    esac
}

[ "$SMOKE" != 0 ] || SMOKE=
DATA=$(absolute "$DATA")
UNLABELLED=$(absolute "$UNLABELLED")
OUT=$(absolute "$OUT")
PRETEXT3D=$(absolute "$PRETEXT3D")
read -ra ARGS <<<"$ARGS"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-runs}

# Where BraTS comes from.
BRATS="Register for BraTS 2018 or a later year, unpack the training data, and name the folder that holds one folder a subject with its \
t1, t1ce, t2, flair and seg: DATA=/path/to/training (scripts/README.md)."

# scans NAME HINT: the experiment takes this folder from DATA or UNLABELLED, or phantoms with SMOKE.
scans() {
    [ -z "$SMOKE" ] || [ -z "${!1}" ] || usage_error "SMOKE=1 generates its own scans: leave $1 out"
    [ -z "${!1}" ] || [ -e "${!1}" ] || usage_error "$1=${!1}: no such folder. $2"
}

# needs_data HINT FILE...: where the labelled scans come from and how they lie; what the folder must hold.
needs_data() {
    scans DATA "$1"
    [ -z "$SMOKE" ] || return 0
    [ -n "$DATA" ] || usage_error "DATA is missing. $1 SMOKE=1 tries everything on phantoms instead."
    local file below missing=
    for file in "${@:2}"; do
        [ -e "$DATA/$file" ] || missing="$missing${missing:+, }$file"
    done
    [ -n "$missing" ] || return 0
    # Often the folder around it is named, or one within.
    for below in "$DATA"/*/ "$(dirname "$DATA")/"; do
        [ ! -e "$below$2" ] || usage_error "DATA=$DATA: has no $missing, but $below has $2: DATA=${below%/}"
    done
    usage_error "DATA=$DATA: has no $missing. $1"
}

# decathlon TASK: DATA is this task of the Medical Segmentation Decathlon, e.g. Task07_Pancreas.
decathlon() {
    local hint="Get $1 of the Medical Segmentation Decathlon, unpack it, and name the folder with dataset.json, imagesTr and labelsTr: \
DATA=/path/to/$1 (scripts/README.md)."
    [ -n "$SMOKE" ] || [ ! -e "$DATA/$1" ] || usage_error "DATA=$DATA: it holds $1; name that folder: DATA=${DATA%/}/$1"
    needs_data "$hint" dataset.json imagesTr labelsTr
    [ -n "$SMOKE" ] || grep -qi "${1#*_}" "$DATA/dataset.json" ||
        usage_error "DATA=$DATA: its dataset.json does not speak of ${1#*_}. $hint"
}

# takes_unlabelled: other scans are welcome.
takes_unlabelled() {
    scans UNLABELLED "It holds scans in any layout of docs/data.md, or is a manifest."
}

# takes_no NAME...: settings that the experiment has no use for.
takes_no() {
    for name in "$@"; do
        [ -z "${!name}" ] || usage_error "$(basename "$0" .sh) takes no $name"
    done
}

# Builds, unless the user named a binary.
build() {
    if [ -z "$PRETEXT3D" ]; then
        . scripts/env.sh
        run cargo build --release --locked
        PRETEXT3D=$TARGET/release/pretext3d
    else
        . scripts/run.sh
    fi
    if [ -z "$JOBS" ]; then
        JOBS=1
        if ! nvidia-smi -L >/dev/null 2>&1 && [ "$(nproc)" -ge 2 ]; then JOBS=2; fi
    fi
    case $JOBS in
    '' | 0* | *[!0-9]*) usage_error "JOBS=$JOBS: expected a whole number from 1 on" ;;
    esac
}

# phantoms KIND SUBJECTS SIZE SEED FOLDER: generated scans in the layout of a public dataset; those that are there are kept.
phantoms() {
    run "$PRETEXT3D" phantom --kind "$1" --subjects "$2" --size "$3" --seed "$4" --out "$5"
}

# preprocess FOLDER STORE ARGUMENTS...: a subject that is there is kept.
preprocess() {
    run "$PRETEXT3D" preprocess --data "$1" --out "$2" "${@:3}"
}

# brats: checks the settings of an experiment on BraTS, builds, and makes the store of its scans. Sets `store`, the end of the
# sweeps' names (`suffix`) and, if there are other scans to pretrain on, `other_store`, which other_scans makes.
brats() {
    takes_unlabelled
    needs_data "$BRATS"
    build
    suffix=
    size=128
    if [ -n "$SMOKE" ]; then
        suffix=-smoke
        size=32
        DATA=data/brats-smoke
        UNLABELLED=data/brats-smoke-other
        phantoms brain 24 32 1 "$DATA"
        phantoms brain 24 32 2 "$UNLABELLED"
    fi
    store=data/stores/brats$suffix
    other_store=${UNLABELLED:+$store-other}
    preprocess "$DATA" "$store" --size $size
}

# other_scans ARGUMENTS...: makes `other_store`. Sets `others`, the arguments of a sweep that pretrains on it.
other_scans() {
    preprocess "$UNLABELLED" "$other_store" --size $size "$@"
    # Phantoms of another seed are other people with the same ids.
    others=(--unlabelled "$other_store" ${SMOKE:+--other-people})
}

# brats_sweeps NAME: experiments/NAME.toml on BraTS, pretrained on the training side alone, without any other scan; then, if there are
# any, on other scans.
brats_sweeps() {
    sweep "$1$suffix" "$1" --data "$store"
    if [ -n "$other_store" ]; then
        other_scans --no-labels
        sweep "$1$suffix-other" "$1" --data "$store" "${others[@]}"
    fi
}

# pancreas: checks the settings of an experiment on the Decathlon's pancreas, builds, and makes the store of its scans. Sets `store` and
# the end of the sweep's name (`suffix`).
pancreas() {
    takes_no UNLABELLED
    decathlon Task07_Pancreas
    build
    suffix=
    local size=128
    if [ -n "$SMOKE" ]; then
        suffix=-smoke
        size=32
        DATA=data/pancreas-smoke
        phantoms abdomen 24 48 1 "$DATA"
    fi
    store=data/stores/pancreas$suffix
    # A window for soft tissue, in HU: from minimum to maximum, one metal clip would take all contrast from the rest.
    preprocess "$DATA" "$store" --size $size --window -100,240
}

# committed_study: checks the settings of a study whose results are committed, and builds.
committed_study() {
    takes_no DATA UNLABELLED SMOKE
    # As it was run: two runs side by side, a thread each. Another number of threads may change last bits.
    JOBS=${JOBS:-2}
    export OMP_NUM_THREADS=1
    build
}

# study: the stores of the studies on brain phantoms.
study() {
    committed_study
    phantoms brain 96 48 1 data/study-labelled
    phantoms brain 128 48 2 data/study-unlabelled
    preprocess data/study-labelled data/stores/study-labelled --size 48
    preprocess data/study-unlabelled data/stores/study-unlabelled --size 48
}

# sweep NAME CONFIG ARGUMENTS...: runs experiments/CONFIG.toml in OUT/sweep-NAME, JOBS runs side by side, and reports. What is
# done is not repeated. Ctrl-C or SIGTERM stops all, each run saved.
sweep() {
    local pid= status=0 stopped=
    local command=("$PRETEXT3D" sweep --config "experiments/$2.toml" --out "$OUT/sweep-$1" --jobs "$JOBS" ${SMOKE:+--smoke} "${@:3}" "${ARGS[@]}")
    echo "+ ${OMP_NUM_THREADS:+OMP_NUM_THREADS=$OMP_NUM_THREADS }${command[*]}" >&2
    trap 'trap "" INT TERM HUP; stopped=1; kill -TERM $pid 2>/dev/null || true' INT TERM HUP
    # In a process group of its own: a terminal's Ctrl-C reaches this shell alone, which passes one signal on.
    set -m
    "${command[@]}" &
    pid=$!
    set +m
    # Where the signal came before there was whom to tell.
    [ -z "$stopped" ] || kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    # The signal ended the waiting, not yet the sweep.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done
    trap - INT TERM HUP
    # Also where the sweep was about to end by itself: the next one is not to begin.
    [ -z "$stopped" ] || exit 130
    [ "$status" = 0 ] || exit "$status"
}

# beside NAME OTHER: one report of two sweeps on the same data, if the other one has been run. OTHER is its folder.
beside() {
    if [ -f "$2/sweep.json" ]; then
        run "$PRETEXT3D" report "$2" "$OUT/sweep-$1" --out "$OUT/sweep-$1/report-2d-3d"
    else
        echo "no report of 2D beside 3D: $2 is not there" >&2
    fi
}
