#!/usr/bin/env bash
# Does pretraining on the pancreas scans of the Medical Segmentation Decathlon help to segment them? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_no UNLABELLED
needs_data "Get Task07_Pancreas of the Medical Segmentation Decathlon, unpack it, and name the folder with dataset.json, imagesTr and \
labelsTr: DATA=/path/to/Task07_Pancreas (scripts/README.md)."
build

if [ -n "$SMOKE" ]; then
    suffix=-smoke
    size=32
    DATA=data/pancreas-smoke
    phantoms abdomen 24 48 1 "$DATA"
else
    suffix=
    size=128
fi

# A window for soft tissue, in HU: from minimum to maximum, one metal clip would take all contrast from the rest.
preprocess "$DATA" "data/stores/pancreas$suffix" --size $size --window -100,240
sweep "pancreas$suffix" pancreas --data "data/stores/pancreas$suffix"
