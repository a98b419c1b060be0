#!/usr/bin/env bash
# QQP: BERT teacher and 6-layer LAD students with the authors' hyper-parameters.
set -euo pipefail

TASK=qqp
NUM_CLASS=2
DEV_SPLITS="dev"
PTRAIN_VER=bert-base-uncased
SEEDS="42 65 26"
DEVICE=0

TEACHER=teacher_base
TEACHER_LR=2e-5
TEACHER_STEPS=34110
TEACHER_WARMUP=10233
TEACHER_ACCUM=1

LAYERS=6
LR=1e-4
GATE_LR=5e-7
TEMPERATURE=20
SOFT=0.7
HARD=0.3
MU=500
STEPS=56850
WARMUP=5685
CKPT_STEP=3000

source "$(dirname "$0")/teacher_and_lad.sh"
