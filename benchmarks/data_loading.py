"""How many tokens a second come from files to a batch: is the loader ever what training waits for?

Every side gives batches of 16 rows of 2,048 tokens with their targets, from files in the system's cache, on one core,
in turn, timed by the processor's own clock. Ours also says where documents begin, in an order drawn anew for each
epoch, and knows any batch by its number alone. torch's `DataLoader` cuts shuffled windows from memory-mapped tokens, as
nanoGPT does, and knows no documents; datatrove's reader goes through its file in order, as it is made for, and adds
positions. Needs datatrove (`pip install datatrove`). The goal is a million tokens a second, which no model here takes
in on the same processor.

    python benchmarks/data_loading.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from interleaved import finish, in_turn, row, running
from torch.utils.data import DataLoader, Dataset

from lmworks.data.tokens.datatrove_store import write_datatrove
from lmworks.data.tokens.mixing import MixedRows, MixtureConfig
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore, TokenStoreWriter
from lmworks.objectives.arrange import ArrangedRows, Arrangement
from lmworks.objectives.masked_lm import MaskingConfig, mask_documents
from lmworks.objectives.source_target import for_encoder_decoder
from lmworks.objectives.span_corruption import SpanCorruptionConfig, span_corruption

VOCABULARY = 50_000
LENGTH, ROWS = 2048, 16
TOKENS, QUICK_TOKENS = 32_000_000, 4_000_000
LONG, SHORT = 600, 60
"""Mean tokens of a document: of web pages, and of messages."""
ROUNDS, QUICK_ROUNDS = 7, 3
ARRANGED = 8
"""How many times fewer batches an arrangement is measured on: it is slower."""
Batches = Iterator[Any]


def write(folder: Path, mean: int, tokens: int) -> None:
    """Documents with lengths as of the web, in our store and, the same, in datatrove's file."""
    generator = np.random.default_rng(mean)
    with TokenStoreWriter(folder, VOCABULARY) as writer:
        while writer.num_tokens < tokens:
            length = 2 + int(generator.lognormal(np.log(mean) - 0.5, 1.0))
            writer.add([(generator.integers(0, VOCABULARY, length), length)])  # type: ignore[list-item]  # any sequence
    store = TokenStore(folder)
    write_datatrove(store, folder / "tokens.ds", VOCABULARY)


class Windows(Dataset[torch.Tensor]):
    """Memory-mapped tokens cut into rows, each with the token after it.

    Args:
        file: bare ids of two bytes.
    """

    def __init__(self, file: Path) -> None:
        self._tokens = np.memmap(file, np.uint16, "r")

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._tokens[index * LENGTH : (index + 1) * LENGTH + 1].astype(np.int64))


def torch_batches(folder: Path) -> Batches:
    """Inputs and targets of shuffled windows."""
    for windows in DataLoader(Windows(folder / "tokens.ds"), batch_size=ROWS, shuffle=True, drop_last=True):
        yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def datatrove_batches(folder: Path) -> Batches:
    """Inputs, targets and positions of windows in the order of the file."""
    from datatrove.utils.dataset import DatatroveFileDataset

    windows = DatatroveFileDataset(str(folder / "tokens.ds"), LENGTH, token_size=2, return_positions=True)
    for batch in DataLoader(windows, batch_size=ROWS, drop_last=True):
        ids, positions = batch["input_ids"], batch["positions"]
        yield ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions[:, :-1].contiguous()


def our_rows(folder: Path, case: Mapping[str, Any]) -> Any:
    """What a case reads."""
    stores = [TokenStore(folder / str(mean)) for mean in case["documents"]]
    packed = [PackedRows(store, LENGTH, seed) for seed, store in enumerate(stores)]
    if len(packed) > 1:
        sources = {str(mean): {"tokens": folder / str(mean), "weight": 1 / len(stores)} for mean in case["documents"]}
        schedule = MixtureConfig.parse({"sources": sources}).schedule(
            {str(mean): rows.rows_per_epoch for mean, rows in zip(case["documents"], packed, strict=True)}, 1 << 20
        )
        return MixedRows(packed, schedule)
    return ArrangedRows(packed[0], ARRANGEMENTS[case["arranged"]], 0) if "arranged" in case else packed[0]


def our_batches(folder: Path, case: Mapping[str, Any]) -> Batches:
    """Packed batches, one after the other."""
    rows = our_rows(folder, case)
    start = 0
    while True:
        yield rows.rows(start, ROWS)
        start += ROWS


ARRANGEMENTS: dict[str, Arrangement] = {
    "masked_lm": partial(mask_documents, config=MaskingConfig(mask_token_id=0, vocab_size=VOCABULARY)),
    "span_corruption": for_encoder_decoder(
        partial(
            span_corruption,
            config=SpanCorruptionConfig(sentinel_token_ids=tuple(range(VOCABULARY - 1, VOCABULARY - 201, -1))),
        ),
        decoder_start_token_id=0,
    ),
}


class Loader:
    """Goes on through its batches and says how fast.

    Args:
        name: of who runs.
        batches: of a case, without end or long enough.
        most: batches that are timed at once.
    """

    def __init__(self, name: str, batches: Callable[[Mapping[str, Any]], Batches], most: int) -> None:
        self.name, self._batches, self._most = name, batches, most
        self._open: dict[str, Batches] = {}

    def start(self) -> None:
        """Nothing is open yet: a case opens what it reads."""

    def run(self, case: Mapping[str, Any]) -> dict[str, float]:
        """Tokens a second of the case's next batches; a file that ends begins again, outside of the time."""
        count = max(1, self._most // (ARRANGED if "arranged" in case else 1))
        if case["case"] not in self._open:
            self._open[case["case"]] = self._batches(case)
            next(self._open[case["case"]])
        batches, seen = self._open[case["case"]], 0
        began = time.process_time()
        for _ in range(count):
            if next(batches, None) is None:
                break
            seen += 1
        seconds = time.process_time() - began
        if seen < count:
            del self._open[case["case"]]
        return {"tokens_per_second": seen * ROWS * LENGTH / seconds}

    def stop(self) -> None:
        """Close the files."""
        self._open.clear()


def main() -> None:
    """Write the files, load, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less data and fewer rounds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens, rounds = (QUICK_TOKENS, QUICK_ROUNDS) if options.quick else (TOKENS, ROUNDS)
    cases: list[dict[str, Any]] = [
        {"case": f"documents of {LONG} tokens", "documents": [LONG]},
        {"case": f"documents of {SHORT} tokens", "documents": [SHORT]},
        {"case": "both mixed", "documents": [LONG, SHORT], "contestants": ["ours"]},
        *(
            {"case": f"{LONG}, {name}", "documents": [LONG], "arranged": name, "contestants": ["ours"]}
            for name in ARRANGEMENTS
        ),
    ]
    with TemporaryDirectory() as place:
        folder = Path(place)
        for mean in (LONG, SHORT):
            write(folder / str(mean), mean, tokens)
        most = tokens // (LENGTH * ROWS) // (rounds + 2)
        loaders = [
            Loader("ours", lambda case: our_batches(folder, case), most),
            Loader("DataLoader", lambda case: torch_batches(folder / str(case["documents"][0])), most),
            Loader("datatrove", lambda case: datatrove_batches(folder / str(case["documents"][0])), most),
        ]
        with running(loaders):
            answers = in_turn(loaders, cases, rounds)
    speeds = {key: [a["tokens_per_second"] / 1e6 for a in found] for key, found in answers.items()}
    rows = [
        row(
            case["case"], speeds["ours", case["case"]], "million tokens/s",
            {loader.name: speeds[loader.name, case["case"]] for loader in loaders[1:] if "contestants" not in case},
            None,
        )
        for case in cases
    ]  # fmt: skip
    finish("data_loading", rows, save=options.save)


if __name__ == "__main__":
    main()
