#!/bin/sh
# The comparison of optimizers at several lengths, on an accelerator, in parts.
#
#     sh benchmarks/accelerator_compare.sh [DIRECTORY]
#
# One call trains for at most eight minutes and then stops; the next continues from the last checkpoint. It ends with 0 when the
# tables are written, and with 75 where another call is needed. MODEL, LENGTHS, STEPS, BATCH, LENGTH, SEEDS, OPTIMIZERS, TEXT
# and PART (seconds of a call) are taken from the environment: a try on a CPU is
#
#     MODEL=cpu-1m LENGTHS=2,4 STEPS=4 BATCH=2 LENGTH=16 SEEDS=1 OPTIMIZERS="adamw racs" sh benchmarks/accelerator_compare.sh try
set -u
out=${1:-compare-60m}
text=${TEXT:+--text $TEXT}
# The names and the text are words, split where they have spaces.
# shellcheck disable=SC2086
timeout --signal=INT --kill-after=30 "${PART:-480}" fimlens compare --model "${MODEL:-llama-60m}" \
    --optimizers ${OPTIMIZERS:-adamw:b2=0.95 racs:weight_decay=0 alice alice_muon soap muon kl_shampoo soap_muon} \
    --clip 1 --option weight_decay=0.1 \
    --lengths "${LENGTHS:-1000,2000,4000}" --steps "${STEPS:-2000}" --batch "${BATCH:-64}" --length "${LENGTH:-256}" \
    --seeds "${SEEDS:-3}" --dtype "${DTYPE:-bfloat16}" $text --out "$out"
status=$?
if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "Not finished: call it again with the same directory, $out."
    exit 75
fi
exit "$status"
