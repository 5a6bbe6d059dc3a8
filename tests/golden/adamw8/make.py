"""Writes adamw8.safetensors: the maps of bitsandbytes' 8-bit optimizers, for the first moment and for the second.

    pip install torch==2.11.0 bitsandbytes==0.50.2 safetensors && python make.py
"""
import os

from bitsandbytes import functional as F
from safetensors.torch import save_file

maps = {"signed": F.create_dynamic_map(signed=True), "unsigned": F.create_dynamic_map(signed=False)}
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "adamw8.safetensors")
save_file({name: m.contiguous().clone() for name, m in maps.items()}, path)
