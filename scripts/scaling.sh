#!/usr/bin/env bash
# How does the gain grow with the number of unlabelled scans? BraTS, pretrained on 10, 25, 50 and 100 % of the scans in UNLABELLED, or
# of BraTS's own training side. See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

# The stores are those of brats.sh.
brats
if [ -n "$other_store" ]; then
    other_scans --no-labels
    sweep "scaling$suffix-other" scaling --data "$store" "${others[@]}"
else
    sweep "scaling$suffix" scaling --data "$store"
fi
