#!/usr/bin/env bash
# How does the gain grow with the number of unlabelled scans? BraTS, pretrained on 10, 25, 50 and 100 % of the scans in UNLABELLED, or
# of BraTS's own training side. See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_unlabelled
needs_data "$BRATS"
build

# The stores are those of brats.sh.
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

preprocess "$DATA" "data/stores/brats$suffix" --size $size
if [ -n "$UNLABELLED" ]; then
    preprocess "$UNLABELLED" "data/stores/brats$suffix-other" --size $size --no-labels
    sweep "scaling$suffix-other" scaling --data "data/stores/brats$suffix" --unlabelled "data/stores/brats$suffix-other"
else
    sweep "scaling$suffix" scaling --data "data/stores/brats$suffix"
fi
