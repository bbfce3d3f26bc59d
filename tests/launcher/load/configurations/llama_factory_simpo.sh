#!/bin/bash
FORCE_TORCHRUN=1 NNODES=1 llamafactory-cli train \
    --stage dpo --pref_loss simpo --pref_beta 2.5 --simpo_gamma 1.25 \
    --do_train --finetuning_type lora --lora_rank 16 --lora_alpha 32 --lora_dropout 0.1 --lora_target all \
    --model_name_or_path llava-hf/llava-1.5-7b-hf --template llava --dataset rlhf_v --cutoff_len 4096 \
    --output_dir saves/simpo --per_device_train_batch_size 2 --gradient_accumulation_steps 8 \
    --learning_rate 5e-6 --num_train_epochs 1 --lr_scheduler_type cosine --warmup_steps 20 --bf16 true \
    --val_size 0.05 --quantization_bit 4 --report_to none
