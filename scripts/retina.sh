#!/usr/bin/env bash
# Does pretraining help to grade photographs of the retina? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_unlabelled
needs_data "Get APTOS 2019 Blindness Detection, unpack it, and name the folder that holds train.csv and train_images: \
DATA=/path/to/aptos (scripts/README.md)." train.csv train_images
build

suffix=
size=224
if [ -n "$SMOKE" ]; then
    suffix=-smoke
    size=112
    DATA=data/retina-smoke
    UNLABELLED=data/retina-smoke-other
    phantoms fundus 48 160 1 "$DATA"
    phantoms fundus 24 160 2 "$UNLABELLED"
fi
store=data/stores/retina$suffix
preprocess "$DATA" "$store" --size $size

# Pretrained on each fold's training side alone.
sweep "retina$suffix" retina --data "$store"

# Pretrained on other photographs.
if [ -n "$UNLABELLED" ]; then
    other_store=$store-other
    other_scans --skip-bad
    sweep "retina$suffix-other" retina --data "$store" "${others[@]}"
fi
