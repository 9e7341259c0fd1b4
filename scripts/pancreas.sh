#!/usr/bin/env bash
# Does pretraining on the pancreas scans of the Medical Segmentation Decathlon help to segment them? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

pancreas
sweep "pancreas$suffix" pancreas --data "$store"
