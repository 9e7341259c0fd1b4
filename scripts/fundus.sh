#!/usr/bin/env bash
# Does pretraining help on fundus phantoms? The study whose results are in benches/results/; an hour on two cores. See README.md
# beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

committed_study
phantoms fundus 400 192 1 data/fundus-labelled
phantoms fundus 600 192 2 data/fundus-unlabelled
preprocess data/fundus-labelled data/stores/fundus-labelled --size 96
preprocess data/fundus-unlabelled data/stores/fundus-unlabelled --size 96
sweep fundus fundus
