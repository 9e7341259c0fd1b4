#!/usr/bin/env bash
# Does pretraining help to segment the hippocampus with few labelled scans of the Medical Segmentation Decathlon? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_no UNLABELLED
decathlon Task04_Hippocampus
build

suffix=
if [ -n "$SMOKE" ]; then
    suffix=-smoke
    DATA=data/hippocampus-smoke
    phantoms abdomen 24 32 1 "$DATA"
fi
store=data/stores/hippocampus$suffix
# The scans have three scales of intensity.
preprocess "$DATA" "$store" --size 32 --intensity z-score --skip-duplicates
sweep "hippocampus$suffix" hippocampus --data "$store"
