#!/usr/bin/env bash
# Does pretraining help to grade the photographs of the Indian Diabetic Retinopathy Image Dataset? See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

takes_no UNLABELLED
needs_data "Get IDRiD's disease grading (photographs and grades), bring it into the form of APTOS 2019, and name the folder that \
holds images and labels.csv with the columns id_code and diagnosis: DATA=/path/to/idrid (scripts/README.md)." labels.csv images
build

suffix=
if [ -n "$SMOKE" ]; then
    suffix=-smoke
    DATA=data/idrid-smoke
    phantoms fundus 48 160 1 "$DATA"
fi
store=data/stores/idrid$suffix
# Some photographs are there twice, three of them with two grades.
preprocess "$DATA" "$store" --size 96 --skip-duplicates
sweep "idrid$suffix" idrid --data "$store"
