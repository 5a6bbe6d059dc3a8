"""Writes schedule.json: learning rates and step counts as transformers computes them.

Run with transformers 5.6.0 and torch installed: python make.py
"""

import json
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers import Trainer, TrainingArguments
from transformers.optimization import get_scheduler
from transformers.trainer_callback import TrainerState

HERE = Path(__file__).parent


def schedule(name, lr=3e-4, warmup=0, total=40, **kwargs):
    """The learning rate of each step of a run, and two beyond its end."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = get_scheduler(name, optimizer, warmup, total, kwargs or None)
    lrs = []
    for _ in range(total + 2):
        lrs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return {"name": name, "lr": lr, "warmup": warmup, "total": total, "kwargs": kwargs, "lrs": lrs}


def steps(samples, batch, accum, epochs, max_steps=None, drop_last=False, warmup=0.0, every=0.1):
    """What the trainer plans for a data set of so many rows."""
    args = TrainingArguments(
        output_dir=mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accum,
        num_train_epochs=epochs,
        max_steps=-1 if max_steps is None else max_steps,
        dataloader_drop_last=drop_last,
        warmup_steps=warmup,
        logging_steps=every,
        use_cpu=True,
        report_to="none",
    )
    rows = [{"x": torch.zeros(1)} for _ in range(samples)]
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=rows)
    planned_epochs, per_epoch, _, counted, _, in_epoch, total = trainer.set_initial_training_values(
        args, trainer.get_train_dataloader()
    )
    state = TrainerState()
    state.compute_steps(args, total)
    return {
        "samples": samples, "batch": batch, "accum": accum, "epochs": epochs, "max_steps": max_steps,
        "drop_last": drop_last, "warmup": warmup, "every": every,
        "num_train_epochs": planned_epochs, "num_update_steps_per_epoch": per_epoch, "steps_in_epoch": in_epoch,
        "total_steps": total, "num_train_samples": counted, "warmup_steps": args.get_warmup_steps(total),
        "every_steps": state.logging_steps,
    }  # fmt: skip


SCHEDULES = [
    schedule("linear"),
    schedule("linear", warmup=7),
    schedule("cosine"),
    schedule("cosine", warmup=4, lr=1e-4),
    schedule("cosine", warmup=3, num_cycles=1.5),
    schedule("cosine_with_restarts"),
    schedule("cosine_with_restarts", warmup=5, num_cycles=3),
    schedule("polynomial"),
    schedule("polynomial", warmup=6, lr_end=1e-5, power=2.5),
    schedule("constant"),
    schedule("constant_with_warmup", warmup=9),
    schedule("inverse_sqrt"),
    schedule("inverse_sqrt", warmup=8),
    schedule("inverse_sqrt", warmup=8, timescale=20),
    schedule("cosine_with_min_lr", warmup=4, min_lr=3e-5),
    schedule("cosine_with_min_lr", min_lr_rate=0.25, num_cycles=0.75),
    schedule("linear", warmup=40),
    schedule("cosine", warmup=50),
]

STEPS = [
    steps(100, 4, 2, 3.0),
    steps(101, 4, 2, 3.0),
    steps(101, 4, 2, 3.0, drop_last=True),
    steps(3, 4, 8, 1.0),
    steps(1, 1, 1, 1.0),
    steps(10, 1, 4, 2.5),
    steps(1001, 1, 8, 3.0, warmup=0.1),
    steps(1001, 1, 8, 3.0, warmup=20, every=10),
    steps(997, 2, 8, 0.3, warmup=0.03, every=0.25),
    steps(997, 2, 8, 1.7, warmup=0.5, every=0.07),
    steps(50, 2, 8, 3.0, max_steps=10),
    steps(50, 2, 8, 3.0, max_steps=12),
    steps(50, 2, 8, 3.0, max_steps=13),
    steps(50, 2, 8, 3.0, max_steps=1),
    steps(7, 2, 1, 3.0, max_steps=100, drop_last=True),
    steps(7, 3, 2, 10.0, every=1),
    steps(64, 8, 8, 4.0, warmup=1),
    steps(65, 8, 8, 4.0, warmup=2.0),
    steps(65, 8, 8, 0.5),
    steps(12, 5, 3, 1.1, every=0.99),
]

(HERE / "schedule.json").write_text(
    "{\n"
    + ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"
        for name, rows in [("schedules", SCHEDULES), ("steps", STEPS)]
    )
    + "\n}\n"
)
