#!/usr/bin/env bash
# Does pretraining help to segment brain tumours, and does it take other scans than those with labels? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

brats
brats_sweeps brats
