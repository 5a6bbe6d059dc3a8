"""Small tokenizers as GGUF files, and the ids that the Python packages give: bpe.gguf, spm.gguf, ids.json.

    pip install tokenizers sentencepiece gguf && python make.py

bpe.gguf is a byte-level BPE; ids.json has its ids under each name of `tokenizer.ggml.pre`, the text split by the steps
that the tokenizer.json of a model with that name holds. spm.gguf is SentencePiece's BPE with bytes for what is missing;
its ids are SentencePiece's own.
"""
import io
import json

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox runs; they'll meet again, won't they?",
    "It's the 3rd of May 2023, and 12345 people were there, 100000 more than in 1999. We've seen 42% of them.",
    "def function(value):\n    if value > 10:\n        return value * 2\n    return [x for x in range(100)]\n\n",
    "北京是中华人民共和国的首都。北京的人口很多，人们在北京工作和生活。今天的天气很好，我们去公园吧！",
    "Привет, мир! Это пример текста на русском языке. Привет ещё раз, мир.",
    "HELLO WORLD, Hello World, hello world. The THE the. I'm here, you're there, he'd go. WE'LL SEE.",
    "日本語のテキストとカタカナ。한국어 텍스트도 있습니다. 한국어. Ελληνικά και πάλι ελληνικά.",
    "spaces    and\ttabs\t\tand\n\nnew lines   \n   between words, ((brackets)) {braces} [squares] <<angles>> !!! ... ---",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\t\n\n x",
    "Hello world",
    " Hello World!",
    "   three spaces, then   three more   ",
    "They'll go; WE'VE gone, won't he'd I'M",
    "3 33 333 3333 33333 333333 3333333 33333333 333333333",
    "The price is $1,234.56 (+7.8%) on 2023-05-03.",
    "北京的人口在2023年约为2185万。我们去公园吧！",
    "日本語のテキスト、カタカナ。한국어 텍스트",
    "Привет, мир! ½ ² Ⅷ ѐ é",
    "🦙 emoji 👩‍👩‍👧 and 🇨🇳 flags ✅",
    "def f(x):\n    return x**2  # two\n\n\n\tpass\r\n",
    "!!! ... ((())) <=> ~`^|$+= @#%&*_ a.b.c",
    "x\u00a0y\u3000z\u200bw end ",
    "camelCase HTTPServer snake_case ALLCAPS",
    "“quotes” — dashes… ok",
    "<|im_start|>user\nhi<|im_end|>\n",
    "ãÃ ø Å ñ ß İ ſ K",
]


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
Sequence = pre_tokenizers.Sequence
PRES = {
    "gpt-2": byte_level(True),
    "llama-bpe": Sequence([split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST), byte_level()]),
    "qwen2": Sequence([split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST), byte_level()]),
    "starcoder": Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "falcon": Sequence([pre_tokenizers.Punctuation("contiguous"), byte_level(True), split("[0-9][0-9][0-9]")]),
    "deepseek-coder": Sequence([
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True), byte_level(),
    ]),
}
PRES["deepseek-v3"] = Sequence([
    split(r"\p{N}{1,3}"),
    split("[一-龥぀-ゟ゠-ヿ]+"),
    split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
          "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
    byte_level(),
])
SPECIAL, PLAIN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]


def write_bpe():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = byte_level(True)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(t.to_str())["model"]
    t.add_special_tokens([AddedToken(s, normalized=False) for s in SPECIAL])
    t.add_tokens([AddedToken(s, normalized=False) for s in PLAIN])
    tokens = sorted(t.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    assert [id for _, id in tokens] == list(range(len(tokens)))
    kind = {**dict.fromkeys(SPECIAL, gguf.TokenType.CONTROL), **dict.fromkeys(PLAIN, gguf.TokenType.USER_DEFINED)}
    w = gguf.GGUFWriter("bpe.gguf", "qwen2")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([t for t, _ in tokens])
    w.add_token_types([kind.get(t, gguf.TokenType.NORMAL) for t, _ in tokens])
    w.add_token_merges([" ".join(m) for m in model["merges"]])
    w.add_eos_token_id(t.token_to_id("<|im_end|>"))
    w.add_pad_token_id(t.token_to_id("<|endoftext|>"))
    w.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    finish(w)
    ids = {}
    for name, pre in PRES.items():
        t.pre_tokenizer = pre
        t.normalizer = normalizers.NFC() if name == "qwen2" else normalizers.Sequence([])
        # llama.cpp takes a word that is a token whole; so does the tokenizer.json of llama 3.
        t.model.ignore_merges = name == "llama-bpe"
        ids[name] = [t.encode(text, add_special_tokens=False).ids for text in TEXTS]
        for text, got in zip(TEXTS, ids[name]):
            same = text if name != "qwen2" else normalizers.NFC().normalize_str(text)
            assert t.decode(got, skip_special_tokens=False) == same, text
    return ids


def write_spm():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line]), model_writer=out,
        vocab_size=560, model_type="bpe", byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"])
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    n = sp.get_piece_size()
    kinds = [gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i)
             else gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.UNUSED if sp.is_unused(i)
             else gguf.TokenType.USER_DEFINED if sp.id_to_piece(i).startswith("<|") else gguf.TokenType.NORMAL
             for i in range(n)]
    w = gguf.GGUFWriter("spm.gguf", "llama")
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types(kinds)
    w.add_bos_token_id(sp.bos_id())
    w.add_eos_token_id(sp.eos_id())
    w.add_unk_token_id(sp.unk_id())
    w.add_add_bos_token(True)
    finish(w)
    # After one of its own symbols SentencePiece puts no space, llama.cpp does: that text is left out.
    return [None if "<|" in text else sp.encode(text) for text in TEXTS]


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


ids = {"texts": TEXTS, **write_bpe(), "spm": write_spm()}
with open("ids.json", "w", encoding="utf-8") as f:
    lines = []
    for key, rows in ids.items():
        lines.append(json.dumps(key) + ": [\n  " + ",\n  ".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n ]")
    f.write("{\n " + ",\n ".join(lines) + "\n}\n")
