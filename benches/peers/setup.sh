#!/bin/sh
# Installs LLaMA-Factory 0.9.5 into a virtual environment of its own, with the versions the golden files were made by.
#   benches/peers/setup.sh [folder]     default: target/peers
# The three torch packages are pinned because the newest ones, which pip would take, do not start together with it.
set -eu
venv="${1:-target/peers}"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade pip
"$venv/bin/pip" install --quiet \
    torch==2.11.0 torchaudio==2.11.0 torchvision==0.26.0 \
    llamafactory==0.9.5 transformers==5.6.0 peft==0.18.1 bitsandbytes==0.50.2 tokenizers==0.22.2 safetensors==0.8.0
DISABLE_VERSION_CHECK=1 "$venv/bin/python" -c "import bitsandbytes, llamafactory, torch; print('ready:', torch.__version__)"
