#!/usr/bin/env bash
# MNLI: BERT teacher and 6-layer LAD students with the authors' hyper-parameters.
set -euo pipefail

TASK=mnli
NUM_CLASS=3
DEV_SPLITS="dev_matched dev_mismatched"
PTRAIN_VER=bert-base-uncased
SEEDS="42 65 26"
DEVICE=0

TEACHER=teacher_base
TEACHER_LR=3e-5
TEACHER_STEPS=36816
TEACHER_WARMUP=10000
TEACHER_ACCUM=1

LAYERS=6
LR=1e-4
GATE_LR=5e-7
TEMPERATURE=10
SOFT=0.5
HARD=0.5
MU=500
STEPS=49088
WARMUP=4908
CKPT_STEP=3000

source "$(dirname "$0")/teacher_and_lad.sh"
