"""Training and encoding against the `tokenizers` library by itself, and memory on a long stream.

Both sides read the same corpus with the same trainer or vocabulary, in turn, in one process on one core, timed by the
processor's own clock. The stream is made as it is read: lines of ordinary text with words that never come again, the
worst for a trainer that counts words; its peak is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # read by the library when it is first used

import tokenizers
from interleaved import finish, row

from lmworks.tokenization import Tokenizer
from lmworks.tokenization.byte_alphabet import BYTE_OF
from lmworks.tokenization.corpus_texts import spread_evenly
from lmworks.tokenization.cuts import Cuts
from lmworks.tokenization.kinds import train_spec
from lmworks.tokenization.training import TokenizerConfig, learn

VOCAB_SIZE = 8192
LINE_BYTES = 10_000
NEW_WORDS = 20
_LETTERS = str.maketrans("0123456789", "ghijklmnop")
"""Digits would be cut apart."""


def write_corpus(folder: Path, most: int) -> int:
    """The interpreter's own sources as `train.jsonl`; bytes of their texts."""
    size = 0
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if size + len(text.encode()) > most:
                break
            size += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")
    return size


def train_bare(file: Path) -> tokenizers.Tokenizer:
    """What one writes with the library alone."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    cut = pre.Split(tokenizers.Regex(Cuts().pattern), "isolated")
    backend.pre_tokenizer = pre.Sequence([cut, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, min_frequency=2, initial_alphabet=sorted(BYTE_OF), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    with file.open("rb") as lines:
        backend.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    return backend


def stream(total: int) -> Iterator[bytes]:
    """Lines of text, each with words of its own, `total` bytes in all."""
    source = Path(os.__file__).read_text(encoding="utf-8").encode()
    kept = [source[i : i + LINE_BYTES] for i in range(0, len(source) - LINE_BYTES, 997)]
    for number in range(total // LINE_BYTES):
        words = " ".join(f"{(number * NEW_WORDS + i) * 2654435761 % 2**48:x}" for i in range(NEW_WORDS))
        new = words.translate(_LETTERS).encode()
        yield kept[number % len(kept)][: -len(new) - 1] + b" " + new


def peak(total: int, sample: int) -> float:
    """MiB of the process after learning from a stream, and only that."""
    command = [sys.executable, __file__, "--stream", str(total), "--sample", str(sample)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def learn_from_stream(total: int, sample: int) -> None:
    """Train, then print the peak of resident memory in MiB."""

    def texts() -> Iterator[str]:
        return (line.decode("utf-8", "replace") for _, line in spread_evenly(stream(total), total, sample))

    train_spec("byte_bpe", texts, 1000, [], Cuts())
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def timed(work: Callable[[], Any], size: int) -> float:
    """Megabytes a second of processor time."""
    began = time.process_time()
    work()
    return size / 1e6 / (time.process_time() - began)


def main() -> None:
    """Measure, print and with `--save` keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, 2 MB, a stream of 1 GB")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=int, default=1 << 24, help="bytes that a stream is sampled to")
    given = parser.parse_args()
    if given.stream:
        learn_from_stream(given.stream, given.sample)
        return
    rounds = 1 if given.quick else 7
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size = write_corpus(folder, 2_000_000 if given.quick else 4_000_000)
        config = TokenizerConfig(corpus=folder, output=folder / "t", vocab_size=VOCAB_SIZE)
        ours, bare = learn(config)[0], train_bare(folder / "train.jsonl")
        texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_bytes().splitlines()]
        assert ours.encode_batch(texts[:50]) == [e.ids for e in bare.encode_batch(texts[:50])], "the same ids"
        for case, mine, alone in cases(config, ours, bare, texts):
            speeds: dict[str, list[float]] = {"ours": [], "tokenizers": []}
            for number in range(rounds):
                turns = [("ours", mine), ("tokenizers", alone)]
                for name, work in turns if number % 2 else turns[::-1]:
                    speeds[name].append(timed(work, size))
            rows.append(row(case, speeds["ours"], "MB/s", {"tokenizers": speeds["tokenizers"]}, None))
    for gigabytes in (0.1, 1.0) if given.quick else (0.1, 1.0, 10.0):
        case = f"peak memory, {given.sample >> 20} MiB of a {gigabytes:g} GB stream"
        rows.append(row(case, [peak(int(gigabytes * 1e9), given.sample)], "MiB", {}, None))
    finish("tokenizer", rows, save=given.save)


def cases(
    config: TokenizerConfig, ours: Tokenizer, bare: tokenizers.Tokenizer, texts: list[str]
) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Name, ours and the library's of each case."""
    file = config.corpus / "train.jsonl"
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return [
        ("training, byte-level BPE", lambda: learn(config), lambda: train_bare(file)),
        ("encoding, in batches", lambda: ours.encode_batch(texts),
         lambda: [e.ids for e in bare.encode_batch_fast(texts)]),
        ("encoding, one by one", lambda: [ours.encode(t) for t in texts], lambda: [bare.encode(t).ids for t in texts]),
        ("encoding, line by line", lambda: [ours.encode(t) for t in lines],
         lambda: [bare.encode(t).ids for t in lines]),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
