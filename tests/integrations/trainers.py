"""Tiny language models, random data and a Trainer on real ranks."""

import os

import torch
import torch.distributed as dist

os.environ["HF_HUB_OFFLINE"] = "1"
VOCABULARY = 64


class Tokens(torch.utils.data.Dataset):
    """Sequences whose next token follows from the last one."""

    def __init__(self, count=256):
        drawn = torch.randint(0, 8, (count, 17), generator=torch.Generator().manual_seed(3))
        self.tokens = drawn.cumsum(1) % VOCABULARY

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, place):
        return {"input_ids": self.tokens[place], "labels": self.tokens[place]}


def as_torchrun_does():
    """Tell Accelerate of this rank, whose group exists already."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def gpt2(dropout=0.0):
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=64,
            n_layer=2,
            n_head=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def lora():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
    return get_peft_model(gpt2(), config)


def trainer(folder, model, *callbacks, **options):
    from transformers import PrinterCallback, Trainer, TrainingArguments

    as_torchrun_does()
    usual = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "ddp_backend": "gloo",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }
    args = TrainingArguments(output_dir=str(folder), **usual | options)
    made = Trainer(model, args, None, Tokens(), Tokens(8), callbacks=[*callbacks])
    made.remove_callback(PrinterCallback)
    return made


def trained(folder, model, *callbacks, resume=None, scaled=False, **options):
    """The Trainer after training, with a scaled loss as `fp16` has it on GPUs, if asked."""
    made = trainer(folder, model, *callbacks, **options)
    if scaled:
        made.accelerator.scaler = torch.amp.GradScaler("cpu")
    made.train(resume_from_checkpoint=resume)
    return made


def weights_of(made):
    return torch.cat([p.detach().double().flatten() for p in made.model.parameters()])


def losses_of(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]
