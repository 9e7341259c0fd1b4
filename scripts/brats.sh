#!/usr/bin/env bash
# Does pretraining help to segment brain tumours, and does it take other scans than those with labels? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

brats

# Pretrained on the training side alone, without any other scan.
sweep "brats$suffix" brats --data "$store"

# Pretrained on other scans.
if [ -n "$other_store" ]; then
    other_scans
    sweep "brats$suffix-other" brats --data "$store" --unlabelled "$other_store"
fi
