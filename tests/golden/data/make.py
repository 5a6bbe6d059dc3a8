"""Writes orders.json beside this file: the random orders of torch, numpy and datasets 4.0 that a run must follow.

Needs torch, numpy, datasets and accelerate. Orders of up to 64 rows are kept whole, longer ones as both ends and a sum.
"""

import json
import pathlib

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, concatenate_datasets, interleave_datasets


def order(xs):
    xs = [int(x) for x in xs]
    if len(xs) <= 64:
        return {"n": len(xs), "all": xs}
    total = 0
    for x in xs:
        total = (total * 31 + x) % 1_000_000_007
    return {"n": len(xs), "head": xs[:16], "tail": xs[-16:], "sum": total}


class Rows(torch.utils.data.Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return i


def epochs():
    """As the Trainer makes them: a RandomSampler inside a DataLoader, through accelerate's seedable sampler."""
    for rows, seed in [(1, 42), (2, 42), (10, 42), (37, 7), (64, 0), (1091, 42), (5000, 2**32 + 5)]:
        torch.manual_seed(seed)
        data = Rows(rows)
        loader = torch.utils.data.DataLoader(data, batch_size=1, sampler=torch.utils.data.RandomSampler(data))
        loader = prepare_data_loader(loader, put_on_device=False, use_seedable_sampler=True)
        for epoch in range(3):
            loader.set_epoch(epoch)
            torch.rand(5)  # other draws between epochs must not matter
            yield {"rows": rows, "seed": seed, "epoch": epoch, "order": order(torch.cat(list(loader)).tolist())}
    for rows, seed in [(70000, 42), (131072, 123)]:
        g = torch.Generator()
        g.manual_seed(seed)
        yield {"rows": rows, "seed": seed, "epoch": 0, "order": order(torch.randperm(rows, generator=g).tolist())}


def samples():
    for seed, draws in [(42, [(10, 4)]), (42, [(10, 25), (7, 7)]), (0, [(1, 3)]), (1234, [(1091, 500), (91, 300)]),
                        (2**32 - 1, [(70000, 70010)])]:
        np.random.seed(seed)
        out = []
        for rows, num in draws:
            picked = np.random.permutation(rows)[:num]
            if num > len(picked):
                picked = np.concatenate((picked, np.random.choice(rows, num - len(picked))))
            out.append({"rows": rows, "num_samples": num, "order": order(picked)})
        yield {"seed": seed, "draws": out}


def splits():
    for rows, val, seed in [(10, 0.1, 42), (30, 0.1, 42), (7, 3, 1), (2, 0.5, 9), (1091, 0.05, 42), (1091, 100, 2**40 + 3),
                            (70000, 0.1, 0)]:
        out = Dataset.from_dict({"i": range(rows)}).train_test_split(test_size=val, seed=seed)
        yield {"rows": rows, "val_size": val, "seed": seed, "train": order(out["train"]["i"]),
               "test": order(out["test"]["i"])}


def sources(lengths):
    at = np.cumsum([0] + lengths)
    return [Dataset.from_dict({"i": range(at[k], at[k + 1])}) for k in range(len(lengths))]


def interleaved():
    for lengths in [[3, 4, 5], [5, 1, 3], [40, 9]]:
        for strategy in ["first_exhausted", "all_exhausted"]:
            out = interleave_datasets(sources(lengths), seed=42, stopping_strategy=strategy)
            yield {"lengths": lengths, "probs": None, "seed": 42, "strategy": strategy, "order": order(out["i"])}
    for lengths, probs, seed in [([3, 4, 5], [0.5, 0.3, 0.2], 42), ([900, 2000], [0.3, 0.7], 1), ([20, 20], [0.1, 0.9], 5)]:
        for strategy in ["first_exhausted", "all_exhausted"]:
            out = interleave_datasets(sources(lengths), probabilities=probs, seed=seed, stopping_strategy=strategy)
            yield {"lengths": lengths, "probs": probs, "seed": seed, "strategy": strategy, "order": order(out["i"])}
        # datasets 4.0 lacks the third strategy; later ones skip draws of a data set that is used up.
        rng, at, picks = np.random.default_rng(seed), [0] * len(lengths), []
        offsets = np.cumsum([0] + lengths)
        while at != lengths:
            for k in rng.choice(len(lengths), size=1000, p=probs):
                if at[k] < lengths[k]:
                    picks.append(offsets[k] + at[k])
                    at[k] += 1
        yield {"lengths": lengths, "probs": probs, "seed": seed, "strategy": "once", "order": order(picks)}


def streams():
    """One shard per data set, then shuffled, as `streaming: true` makes them."""
    for lengths, probs, strategy, buffer, seed in [
        ([30], None, "concat", 8, 42), ([30], None, "concat", 100, 42), ([30], None, "concat", 1, 3),
        ([2500, 700], None, "concat", 64, 42), ([3, 4, 5], None, "first_exhausted", 4, 42),
        ([5, 3], None, "all_exhausted", 4, 42), ([900, 2000], [0.3, 0.7], "first_exhausted", 128, 7),
        ([300, 500], [0.3, 0.7], "all_exhausted", 128, 7),
    ]:
        data = [d.to_iterable_dataset(num_shards=1) for d in sources(lengths)]
        if strategy == "concat":
            data = concatenate_datasets(data)
        else:
            data = interleave_datasets(data, probabilities=probs, seed=seed, stopping_strategy=strategy)
        data = data.shuffle(buffer_size=buffer, seed=seed)
        for epoch in range(2):
            data.set_epoch(epoch)
            yield {"lengths": lengths, "probs": probs, "strategy": strategy, "buffer": buffer, "seed": seed,
                   "epoch": epoch, "order": order(row["i"] for row in data)}


if __name__ == "__main__":
    out = {"epoch": epochs(), "samples": samples(), "split": splits(), "interleave": interleaved(), "stream": streams()}
    with open(pathlib.Path(__file__).parent / "orders.json", "w") as f:
        f.write("{\n")
        f.write(",\n".join(
            f'"{name}": [\n' + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]"
            for name, cases in out.items()
        ))
        f.write("\n}\n")
