#!/usr/bin/env bash
# RTE: BERT teacher and 4-layer LAD students with the authors' hyper-parameters.
set -euo pipefail

TASK=rte
NUM_CLASS=2
DEV_SPLITS="dev"
PTRAIN_VER=bert-base-uncased
SEEDS="42 65 26"
DEVICE=0

TEACHER=teacher_base
TEACHER_LR=2e-5
TEACHER_STEPS=231
TEACHER_WARMUP=69
TEACHER_ACCUM=1

LAYERS=4
LR=3e-4
GATE_LR=3e-5
TEMPERATURE=10
SOFT=0.7
HARD=0.3
MU=500
STEPS=1155
WARMUP=346
CKPT_STEP=50

source "$(dirname "$0")/teacher_and_lad.sh"
