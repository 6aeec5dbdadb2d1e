"""The guide to tokenizers runs as it reads."""

import json
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.tokenization import load_tokenizer

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/train-a-tokenizer.md").read_text(encoding="utf-8")
FENCE = re.compile(r"```(sh|yaml|python)\n(.*?)```", re.DOTALL)


def test_the_guide_runs_as_it_reads(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("corpus").symlink_to(corpus)
    Path("en.txt").write_text("The lazy dog's owner jumps over the quick brown fox.")
    Path("zh.txt").write_text("明月光，故乡霜。")
    Path("program.py").write_text("def addOne(a: int) -> int:\n    return a + 1\n")
    Path("chinese.jsonl").write_text(json.dumps({"text": "学而时习之，不亦说乎？" * 5}) + "\n")
    known: dict[str, object] = {}
    for kind, block in FENCE.findall(GUIDE):
        if kind == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
        elif kind == "python":
            exec(block, known)
        else:
            for command in block.splitlines():
                words = shlex.split(command)
                assert words[0] == "lmworks"
                result = CliRunner().invoke(cli, words[1:])
                assert result.exit_code == 0, (command, result.output, result.exception)
    assert Path("compared.png").is_file()
    assert len(load_tokenizer("runs/bytes-zh").encode("学而时习之")) < len(
        load_tokenizer("runs/bytes").encode("学而时习之")
    )
    assert " low" in capsys.readouterr().out
    assert len(GUIDE.splitlines()) <= 120
