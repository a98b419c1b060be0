#!/usr/bin/env bash
# Teacher -> LAD student -> evaluation -> prediction on the bundled sample, on the CPU, from a fresh clone.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements.txt

run=(--task qqp --device_id -1 --data_dir data/sample --experiment_dir data/quickstart)
python=.venv/bin/python

"$python" run_fine_tune.py --experiment teacher --dataset train --num_class 2 --ptrain_ver data/sample/bert \
    --max_seq_len 40 --lr 1e-3 --total_step 800 --warmup_step 80 --ckpt_step 800 --log_step 50 "${run[@]}"
"$python" run_lad_distil.py --experiment LAD --teacher_exp teacher --tckpt 800 \
    --num_hidden_layers 3 --d_model 64 --d_ff 128 --num_attention_heads 4 --lr 1e-3 --gate_lr 1e-4 \
    --softmax_temp 2 --soft_weight 0.7 --hard_weight 0.3 --mu 10 \
    --total_step 800 --warmup_step 80 --ckpt_step 400 --log_step 50 "${run[@]}"
for experiment in teacher LAD; do
    "$python" run_fine_tune_eval.py --experiment "$experiment" --dataset dev --batch_size 256 "${run[@]}"
done
"$python" generate_test_prediction.py --experiment LAD --dataset test --ckpt 800 --batch_size 256 "${run[@]}"

"$python" - <<'END'
import json
from pathlib import Path

runs = Path("data/quickstart")
lines = Path("data/sample/QQP/dev.tsv").read_text().splitlines()[1:]
share = sum(line.endswith("\t1") for line in lines) / len(lines)
print(f"\ndev accuracy: majority class {max(share, 1 - share):.3f}", end="")
for name in ("teacher", "LAD"):
    best = json.loads((runs / f"{name}_bert_qqp" / "eval-dev.json").read_text())["best"]["accuracy"]
    print(f", {name} {best['value']:.3f} (step {best['step']})", end="")
print(f"\ncurves:       .venv/bin/tensorboard --logdir {runs / 'log'}")
print(f"predictions:  {runs / 'LAD_bert_qqp' / 'QQP.tsv'}")
END
