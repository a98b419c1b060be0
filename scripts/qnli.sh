#!/usr/bin/env bash
# QNLI: BERT teacher and 6-layer LAD students with the authors' hyper-parameters.
set -euo pipefail

TASK=qnli
NUM_CLASS=2
DEV_SPLITS="dev"
PTRAIN_VER=bert-base-uncased
SEEDS="42 65 26"
DEVICE=0

TEACHER=teacher_base
TEACHER_LR=3e-5
TEACHER_STEPS=9822
TEACHER_WARMUP=3274
TEACHER_ACCUM=2

LAYERS=6
LR=1e-4
GATE_LR=1e-6
TEMPERATURE=10
SOFT=0.5
HARD=0.5
MU=1000
STEPS=13096
WARMUP=1309
CKPT_STEP=1000

source "$(dirname "$0")/teacher_and_lad.sh"
