"""A tiny trained tokenizer of every kind that families ship, saved by `transformers` as users' folders are.

Nothing here but what the `tokenizers` library trains on a few lines; merges and pieces are real, sizes are not.
"""

import json
import warnings
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmworks.tokenization.pretokenizers import gpt4_pattern

LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog's owner couldn't care less.",
    "def add(a: int, b: int) -> int:\n    return a + b  # 12 + 345 = 357\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "naïve café, Ελληνικά and words, words, words: the end is the beginning of the end.",
    "What is the capital of France? The capital of France is Paris, said the fox.",
] * 3
BYTES = [f"<0x{b:02X}>" for b in range(256)]
SIZE = 420


def _framed(tokenizer: Tokenizer, single: str) -> None:
    """Put special tokens around a text."""
    names = [t.split(":")[0] for t in single.split() if t != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(n, tokenizer.token_to_id(n)) for n in dict.fromkeys(names)]
    )


def _byte_level(special: list[str], pre, ignore_merges: bool = False, single: str = "") -> Tokenizer:
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if single:
        _framed(t, single)
    return t


def gpt2() -> tuple[Tokenizer, dict]:
    end = "<|endoftext|>"
    return _byte_level([end], pre_tokenizers.ByteLevel(add_prefix_space=False)), {"bos_token": end, "eos_token": end}


def bart() -> tuple[Tokenizer, dict]:
    t = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], pre_tokenizers.ByteLevel(add_prefix_space=True))
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
    roles = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "sep_token": "</s>",
    }
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return t, {**roles, "mask_token": mask}


def llama3() -> tuple[Tokenizer, dict]:
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(gpt4_pattern(3)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    t = _byte_level(special, cut, ignore_merges=True, single="<|begin|> $A")
    return t, {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def deepseek() -> tuple[Tokenizer, dict]:
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in (r"\p{N}{1,3}", r"[一-龥]+", r"[\r\n]", r"\s?\p{L}+")]
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    cut = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return _byte_level([bos, eos], cut, single=f"{bos} $A"), {"bos_token": bos, "eos_token": eos}


def _sentencepiece_bpe(special: list[str], normalizer, pre, strip: bool, single: str) -> Tokenizer:
    """Train, then list the bytes as plain entries, as converted SentencePiece models do."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer, t.pre_tokenizer = normalizer, pre_tokenizers.Metaspace(split=True)
    trained = trainers.BpeTrainer(vocab_size=SIZE + 256, special_tokens=[*special, *BYTES], show_progress=False)
    t.train_from_iterator(LINES, trained)
    spec = json.loads(t.to_str())
    spec["added_tokens"] = [a for a in spec["added_tokens"] if a["content"] not in BYTES]
    t = Tokenizer.from_str(json.dumps(spec))
    t.pre_tokenizer = pre
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    _framed(t, single)
    return t


_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def llama() -> tuple[Tokenizer, dict]:
    """Llama-2: a mark before every stretch of text, by the normalizer."""
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t = _sentencepiece_bpe(["<unk>", "<s>", "</s>"], marks, None, strip=True, single="<s> $A")
    return t, _LLAMA


def mistral() -> tuple[Tokenizer, dict]:
    """A mark before the whole text alone."""
    pre = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    return _sentencepiece_bpe(special, None, pre, strip=True, single="<s> $A"), _LLAMA


def gemma() -> tuple[Tokenizer, dict]:
    """No mark at the beginning."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pre = pre_tokenizers.Split(" ", "merged_with_previous")
    t = _sentencepiece_bpe(special, normalizers.Replace(" ", "▁"), pre, strip=False, single="<bos> $A")
    return t, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _unigram(special: list[str], pre, single: str, unk: str = "<unk>") -> Tokenizer:
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    t.pre_tokenizer, t.decoder = pre, decoders.Metaspace()
    t.train_from_iterator(
        LINES, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token=unk, show_progress=False)
    )
    _framed(t, single)
    return t


def t5() -> tuple[Tokenizer, dict]:
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    pre = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return _unigram(special, pre, "$A </s>"), {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def xlm_r() -> tuple[Tokenizer, dict]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    t = _unigram(special, pre_tokenizers.Metaspace(), "<s> $A </s>")
    roles = dict(_LLAMA, pad_token="<pad>", cls_token="<s>", sep_token="</s>", clean_up_tokenization_spaces=True)
    return t, {**roles, "mask_token": AddedToken("<mask>", lstrip=True, special=True)}


def bert() -> tuple[Tokenizer, dict]:
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    _framed(t, "[CLS] $A [SEP]")
    roles = {f"{r}_token": f"[{r.upper()}]" for r in ("pad", "unk", "cls", "sep", "mask")}
    return t, {**roles, "clean_up_tokenization_spaces": True}


KINDS = {f.__name__: f for f in (gpt2, bart, llama3, deepseek, llama, mistral, gemma, t5, xlm_r, bert)}


def save(kind: str, folder: Path, template: str | None = None) -> None:
    """Write a folder as `save_pretrained` of the reference library does."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, roles = KINDS[kind]()
    with warnings.catch_warnings(action="ignore"):
        reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    reference.chat_template = template
    reference.save_pretrained(folder)
