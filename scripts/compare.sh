#!/usr/bin/env bash
# Compares the methods: one teacher, for every method the best mu on a seed that is not reported, then all seeds, report.
#
#     bash scripts/compare.sh                 does what is not there yet; start it again after an interruption
#     bash scripts/compare.sh runs            one stage alone: teacher, tune, runs or report
#     bash scripts/compare.sh switches effects    what single changes to LAD and PKD do, and a report on them
#     PRINT=1 bash scripts/compare.sh runs    prints the stage's commands instead, a line for each run
#
# Every variable may come from the environment: TASK=mrpc STEPS=230 SEEDS="1 2 3" bash scripts/compare.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi  # else whatever python the caller has

TASK=${TASK:-sst2}
NUM_CLASS=${NUM_CLASS:-2}
DEV=${DEV:-dev}
DATA_DIR=${DATA_DIR:-data/fine_tune}
EXPERIMENT_DIR=${EXPERIMENT_DIR:-data/compare}
DEVICE=${DEVICE:-0}
JOBS=${JOBS:-1}  # runs at a time

PTRAIN_VER=${PTRAIN_VER:-bert-base-uncased}
MAX_SEQ_LEN=${MAX_SEQ_LEN:-128}
TEACHER_LR=${TEACHER_LR:-2e-5}
TEACHER_STEPS=${TEACHER_STEPS:-6314}

# The students, and what all methods share.
LAYERS=${LAYERS:-6}
STEPS=${STEPS:-10524}
LR=${LR:-1e-4}
OBJECTIVE=${OBJECTIVE:---softmax_temp 10 --soft_weight 0.7 --hard_weight 0.3}
PAD_LOSS=${PAD_LOSS:-masked}
CACHE=${CACHE-40}  # GiB of disk that what the teacher says may take, for all runs; CACHE= keeps nothing: slower
FLAGS=${FLAGS:-}  # more flags of the students: --compile --precision bf16
GATE_LR=${GATE_LR:-5e-7}
PARTIAL=${PARTIAL:-2,4,6,8,10}  # the gates of partial LAD

METHODS=${METHODS:-labels logits pkd alp-kd-hidden alp-kd-hidden-v2 lad_no partial_lad lad}
SEEDS=${SEEDS:-1 2 3 4 5}
MUS=${MUS:-10 100 1000}
TUNE_SEED=${TUNE_SEED:-42}
BASELINE=${BASELINE:-logits only}  # a group, as the report calls it

at=$(printf '%q ' --task "$TASK" --data_dir "$DATA_DIR" --experiment_dir "$EXPERIMENT_DIR" | sed 's/ $//')

# The script of a method and its own flags.
method() {
    case $1 in
        labels) echo "run_pkd_distill.py --mu 0 --soft_weight 0 --hard_weight 1" ;;
        logits) echo "run_pkd_distill.py --mu 0 $OBJECTIVE" ;;
        pkd) echo "run_pkd_distill.py --mu $2 $OBJECTIVE" ;;
        alp-kd*) echo "run_alp_distil.py --alp_exp $1 --mu $2 $OBJECTIVE" ;;
        lad) echo "run_lad_distil.py --gate_lr $GATE_LR --mu $2 $OBJECTIVE" ;;
        lad_no) echo "run_lad_no_distil.py --gate_lr $GATE_LR --mu $2 $OBJECTIVE" ;;
        partial_lad)
            echo "run_probing_lad.py --probing_exp $1 --gate_indices $PARTIAL --gate_lr $GATE_LR --mu $2 $OBJECTIVE" ;;
        *) echo "METHODS: $1 is not known here" >&2; exit 2 ;;
    esac
}

for name in $METHODS; do method "$name" 0 > /dev/null; done

# A line that trains the student $1 by $2, script and flags, with the seed $3, and scores it; none if that was done.
student() {
    if [ -f "$EXPERIMENT_DIR/$1_bert_$TASK/eval-$DEV.json" ]; then return; fi
    echo "python $2 --experiment $1 $at --teacher_exp teacher --tckpt $TEACHER_STEPS --num_hidden_layers $LAYERS" \
        "--batch_size 32 --lr $LR --total_step $STEPS --warmup_step $((STEPS / 10)) --ckpt_step $STEPS" \
        "--log_step 50 --pad_loss $PAD_LOSS ${CACHE:+--cache_teacher --cache_limit $CACHE} $FLAGS" \
        "--seed $3 --device_id $DEVICE" \
        "&& python run_fine_tune_eval.py --experiment $1 $at --dataset $DEV --batch_size 128"
}

# What the runs of the tuning seed scored, as CSV; nothing where there are none.
tuned() {
    if ls -d "$EXPERIMENT_DIR"/tune-*"_bert_$TASK" > /dev/null 2>&1; then
        bash -c "python -m fine_tune.report 'tune-*' $at --dataset $DEV --format csv"
    fi
}

# The mu of a method: that of its best run in $tuned, the last of equals, or the first of MUS. Column 9 is the score.
best_mu() {
    case $1 in labels | logits) echo 0; return ;; esac
    found=$(grep ",tune-$1-mu" <<< "$tuned" | LC_ALL=C sort -t, -k9g | tail -n 1 | sed 's/.*-mu\([^,]*\),.*/\1/') || true
    if [ -z "$found" ] && [ "$MUS" != "${MUS%% *}" ]; then
        echo "$1: the stage tune has scored no mu, so it gets the first of MUS, ${MUS%% *}" >&2
    fi
    echo "${found:-${MUS%% *}}"
}

teacher() {
    if [ -f "$EXPERIMENT_DIR/teacher_bert_$TASK/eval-$DEV.json" ]; then return; fi
    echo "python run_fine_tune.py --experiment teacher $at --dataset train --num_class $NUM_CLASS" \
        "--ptrain_ver $(printf %q "$PTRAIN_VER") --max_seq_len $MAX_SEQ_LEN --batch_size 32 --lr $TEACHER_LR" \
        "--total_step $TEACHER_STEPS --warmup_step $((TEACHER_STEPS / 10)) --ckpt_step $TEACHER_STEPS --log_step 50" \
        "--seed 42 --device_id $DEVICE" \
        "&& python run_fine_tune_eval.py --experiment teacher $at --dataset $DEV --batch_size 128"
}

tune() {
    for method in $METHODS; do
        case $method in labels | logits) continue ;; esac
        for mu in $MUS; do student "tune-$method-mu$mu" "$(method "$method" "$mu")" "$TUNE_SEED"; done
    done
}

runs() {
    declare -A flags
    tuned=$(tuned)
    for method in $METHODS; do flags[$method]=$(method "$method" "$(best_mu "$method")"); done
    for seed in $SEEDS; do
        for method in $METHODS; do student "run-$method-$seed" "${flags[$method]}" "$seed"; done
    done
}

# What our switches and the choice of layers do: one change each to LAD and PKD.
switches() {
    tuned=$(tuned)
    lad=$(best_mu lad) pkd=$(method pkd "$(best_mu pkd)")
    for seed in $SEEDS; do
        for layers in last reverse top; do student "switch-pkd-$layers-$seed" "$pkd --layer_map $layers" "$seed"; done
        for rate in 1e-5 1e-4 1e-3; do student "switch-lad-$rate-$seed" "$(GATE_LR=$rate method lad "$lad")" "$seed"; done
        student "switch-lad-embeddings-$seed" "$(method lad "$lad") --embedding_init random" "$seed"
        for start in first random; do
            student "switch-lad-$start-$seed" "$(method lad "$lad") --student_init $start" "$seed"
        done
        for padding in sampled all; do  # every position of every text would be too much to keep
            CACHE='' PAD_LOSS=$padding student "switch-lad-$padding-$seed" "$(method lad "$lad")" "$seed"
        done
    done
}

report() {
    echo "python -m fine_tune.report 'run-*' $at --dataset $DEV --baseline '$BASELINE'"
}

effects() {
    for what in lad:lad "pkd:pkd layer_map=even"; do
        echo "python -m fine_tune.report 'run-${what%%:*}-*' 'switch-${what%%:*}-*' $at --dataset $DEV" \
            "--baseline '${what#*:}'"
    done
}

for stage in ${*:-teacher tune runs report}; do
    if [ "${PRINT:-}" ]; then
        "$stage"
    else
        "$stage" | xargs -r -d '\n' -P "$JOBS" -n 1 bash -c
    fi
done
