#!/usr/bin/env bash
# Does pretraining help on brain phantoms? The study whose results are in benches/results/; hours on two cores. See README.md
# beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_no DATA UNLABELLED SMOKE

# As the study was run: two shards, a thread each. Another number of threads may change last bits.
JOBS=${JOBS:-2}
export OMP_NUM_THREADS=1
build

phantoms brain 96 48 1 data/study-labelled
phantoms brain 128 48 2 data/study-unlabelled
preprocess data/study-labelled data/stores/study-labelled --size 48
preprocess data/study-unlabelled data/stores/study-unlabelled --size 48
sweep phantom phantom
sweep phantom-frozen phantom-frozen
