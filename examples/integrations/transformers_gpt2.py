"""A small GPT-2 in the Trainer of Transformers, on random data:
torchrun --nproc-per-node 2 examples/integrations/transformers_gpt2.py [--resume]
"""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import gradsieve as gs
from gradsieve.integrations.transformers import SieveCallback

VOCABULARY, LENGTH = 64, 32


class Walks(torch.utils.data.Dataset):
    """Sequences in which each token is a few steps from the one before."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, 4, (count, LENGTH), generator=generator).cumsum(1)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[place] % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
)
sieve = SieveCallback(threshold=gs.Sigma(2))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="gpt2-run",
        max_steps=40,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=10,
        save_steps=20,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
    ),
    train_dataset=Walks(2000, seed=0),
    eval_dataset=Walks(100, seed=1),
    callbacks=[sieve],
)
trainer.train(resume_from_checkpoint="--resume" in sys.argv)
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    print(sieve.sieve.totals)
    print(f"held-out loss {metrics['eval_loss']:.3f}")
trainer.accelerator.end_training()
