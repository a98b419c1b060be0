# Sourced by the task files beside it, which set the variables: a teacher, then a LAD student for every seed, each
# evaluated on every dev split. What is finished is left alone, so the same file can be started again after a failure.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi  # else whatever python the caller has

python run_fine_tune.py --experiment "$TEACHER" --task "$TASK" --dataset train --num_class "$NUM_CLASS" \
    --ptrain_ver "$PTRAIN_VER" --max_seq_len 128 --batch_size 32 --accum_step "$TEACHER_ACCUM" --lr "$TEACHER_LR" \
    --total_step "$TEACHER_STEPS" --warmup_step "$TEACHER_WARMUP" --ckpt_step "$TEACHER_STEPS" --log_step 100 \
    --seed 42 --device_id "$DEVICE"

for SEED in $SEEDS; do
    STUDENT="LAD_${LAYERS}_$SEED"
    python run_lad_distil.py --experiment "$STUDENT" --task "$TASK" --teacher_exp "$TEACHER" --tckpt "$TEACHER_STEPS" \
        --num_hidden_layers "$LAYERS" --batch_size 32 --lr "$LR" --gate_lr "$GATE_LR" --softmax_temp "$TEMPERATURE" \
        --soft_weight "$SOFT" --hard_weight "$HARD" --mu "$MU" --total_step "$STEPS" --warmup_step "$WARMUP" \
        --ckpt_step "$CKPT_STEP" --log_step 100 --seed "$SEED" --device_id "$DEVICE"
    for DEV in $DEV_SPLITS; do
        python run_fine_tune_eval.py --experiment "$STUDENT" --task "$TASK" --dataset "$DEV" --batch_size 256
    done
done
