#!/usr/bin/env bash
# Does pretraining help to segment brain tumours, and does it take other scans than those with labels? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_unlabelled
needs_data "$BRATS"
build

if [ -n "$SMOKE" ]; then
    suffix=-smoke
    size=32
    DATA=data/brats-smoke
    UNLABELLED=data/brats-smoke-other
    phantoms brain 24 32 1 "$DATA"
    phantoms brain 24 32 2 "$UNLABELLED"
else
    suffix=
    size=128
fi

# Pretrained on the training side alone, without any other scan.
preprocess "$DATA" "data/stores/brats$suffix" --size $size
sweep "brats$suffix" brats --data "data/stores/brats$suffix"

# Pretrained on other scans.
if [ -n "$UNLABELLED" ]; then
    preprocess "$UNLABELLED" "data/stores/brats$suffix-other" --size $size --no-labels
    sweep "brats$suffix-other" brats --data "data/stores/brats$suffix" --unlabelled "data/stores/brats$suffix-other"
fi
