#!/usr/bin/env bash
# MRPC: BERT teacher and 6-layer LAD students with the authors' hyper-parameters.
set -euo pipefail

TASK=mrpc
NUM_CLASS=2
DEV_SPLITS="dev"
PTRAIN_VER=bert-base-uncased
SEEDS="26"
DEVICE=0

TEACHER=teacher_base
TEACHER_LR=2e-5
TEACHER_STEPS=575
TEACHER_WARMUP=172
TEACHER_ACCUM=1

LAYERS=6
LR=7e-4
GATE_LR=5e-6
TEMPERATURE=10
SOFT=0.7
HARD=0.3
MU=500
STEPS=2300
WARMUP=690
CKPT_STEP=100

source "$(dirname "$0")/teacher_and_lad.sh"
