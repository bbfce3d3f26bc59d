#!/bin/bash
# KTO with LoRA on 4 GPUs
accelerate launch --config_file=zero2.yaml --num_processes 4 trl/scripts/kto.py \
    --dataset_name trl-lib/kto-mix-14k \
    --model_name_or_path trl-lib/qwen1.5-1.8b-sft \
    --per_device_train_batch_size 16 \
    --num_train_epochs 1 \
    --learning_rate 5e-7 \
    --lr_scheduler_type=cosine \
    --gradient_accumulation_steps 1 \
    --eval_steps 500 --eval_strategy steps \
    --output_dir=kto-aligned-model \
    --warmup_ratio 0.1 \
    --desirable_weight 1.0 --undesirable_weight 1.33 \
    --bf16 \
    --logging_first_step \
    --use_peft --load_in_4bit --lora_target_modules=all-linear --lora_r=16 --lora_alpha=16
