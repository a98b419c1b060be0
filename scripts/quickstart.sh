#!/usr/bin/env bash
# Teacher -> LAD and PKD students -> evaluation -> prediction -> report on the bundled sample, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements.txt

run=(--task qqp --device_id -1 --data_dir data/sample --experiment_dir data/quickstart)
python=.venv/bin/python

"$python" run_fine_tune.py --experiment teacher --dataset train --num_class 2 --ptrain_ver data/sample/bert \
    --max_seq_len 40 --lr 1e-3 --total_step 800 --warmup_step 80 --ckpt_step 800 --log_step 50 "${run[@]}"
student=(--teacher_exp teacher --tckpt 800 --num_hidden_layers 3 --lr 1e-3
         --softmax_temp 2 --soft_weight 0.7 --hard_weight 0.3 --mu 10
         --total_step 600 --warmup_step 60 --ckpt_step 200 --log_step 50)
"$python" run_lad_distil.py --experiment LAD --gate_lr 1e-4 "${student[@]}" "${run[@]}"
"$python" run_pkd_distill.py --experiment PKD "${student[@]}" "${run[@]}"
for experiment in teacher LAD PKD; do
    "$python" run_fine_tune_eval.py --experiment "$experiment" --dataset dev --batch_size 256 "${run[@]}"
done
"$python" generate_test_prediction.py --experiment LAD --dataset test --ckpt best --batch_size 256 "${run[@]}"
echo
"$python" -m fine_tune.report LAD PKD --baseline pkd "${run[@]}"
echo "
curves:       .venv/bin/tensorboard --logdir data/quickstart/log
predictions:  data/quickstart/LAD_bert_qqp/QQP.tsv"
