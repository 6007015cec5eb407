"""LoRA adapters of PEFT in the Trainer of Transformers, on random data:
torchrun --nproc-per-node 2 examples/integrations/transformers_lora.py
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import gradsieve as gs
from gradsieve.integrations.transformers import SieveCallback

VOCABULARY, LENGTH = 64, 32

tokens = torch.randint(0, 4, (2000, LENGTH), generator=torch.Generator().manual_seed(0))
tokens = tokens.cumsum(1) % VOCABULARY
base = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
)
model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
sieve = SieveCallback(threshold=gs.Sigma(2))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="lora-run",
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=10,
        save_steps=20,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
    callbacks=[sieve],
)
trainer.train()
if trainer.is_world_process_zero():
    print(sieve.sieve.totals)
    print(f"{len(sieve.sieve.last.thresholds)} adapter matrices are pruned")
