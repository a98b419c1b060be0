#!/usr/bin/env bash
# SST-2: BERT teacher and 6-layer LAD students with the authors' hyper-parameters.
set -euo pipefail

TASK=sst2
NUM_CLASS=2
DEV_SPLITS="dev"
PTRAIN_VER=bert-base-uncased
SEEDS="42 65 26"
DEVICE=0

TEACHER=teacher_base
TEACHER_LR=2e-5
TEACHER_STEPS=6315
TEACHER_WARMUP=1894
TEACHER_ACCUM=1

LAYERS=6
LR=1e-4
GATE_LR=1e-6
TEMPERATURE=20
SOFT=0.5
HARD=0.5
MU=1000
STEPS=42100
WARMUP=12630
CKPT_STEP=2000

source "$(dirname "$0")/teacher_and_lad.sh"
