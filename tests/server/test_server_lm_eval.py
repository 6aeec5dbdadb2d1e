"""lm-evaluation-harness asks the server and its own Hugging Face backend, and gets the same scores."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lmworks.engine import AsyncLLM
from lmworks.engine.config import EngineConfig
from lmworks.models.build import build_model
from lmworks.models.hub import save_pretrained
from lmworks.proofs.tiny import LLAMA
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PERPLEXITY = """
task: tiny_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""
SCRIPT = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, url, tasks = sys.argv[1:]
server = dict(model="talker", base_url=url + "/v1/completions", num_concurrent=4, tokenized_requests=True,
              tokenizer=folder, max_length=256)
scores = {}
for name, arguments in (("hf", dict(pretrained=folder, dtype="float32", device="cpu")), ("local-completions", server)):
    told = simple_evaluate(
        model=name, model_args=arguments, tasks=["tiny_choice", "tiny_perplexity"], batch_size=4, bootstrap_iters=0,
        task_manager=TaskManager(include_path=tasks, include_defaults=False), log_samples=True,
    )
    sums = [[float(p[0][0] if isinstance(p[0], (list, tuple)) else p[0]) for p in sample["resps"]]
            for task in told["samples"].values() for sample in sorted(task, key=lambda s: s["doc_id"])]
    scores[name] = {"results": told["results"], "sums": sums}
print("SCORES" + json.dumps(scores, default=str))
"""


@pytest.mark.slow
def test_scores_equal_those_of_its_own_backend(tmp_path, tokenizer):
    folder, tasks = tmp_path / "model", tmp_path / "tasks"
    changes = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.2, "max_position_embeddings": 256}
    save_pretrained(build_model(LLAMA.model_copy(update=changes), seed=1), folder, dtype=torch.float32)
    tokenizer.save(folder)
    tasks.mkdir()
    words = ["Paris", "the capital", "Bonjour!", "Voilà 😀", "is **the**"]
    rows = [
        {"question": " ".join(words[(i + k) % 5] for k in range(3)), "choices": words[:4], "label": i % 4}
        for i in range(12)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in (("choice", CHOICE), ("perplexity", PERPLEXITY)):
        (tasks / f"{name}.yaml").write_text(task.format(data=tmp_path / "data.jsonl"))
    llm = AsyncLLM(folder, config=EngineConfig(dtype="float32"))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background({"talker": ServedModel("talker", llm)}, AppConfig(), listener) as server,
    ):
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), server.url, str(tasks)],
            env={**os.environ, **offline}, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    llm.shutdown()
    assert "SCORES" in ran.stdout, ran.stderr[-4000:]
    scores = json.loads(ran.stdout.partition("SCORES")[2])
    own, served = scores["hf"], scores["local-completions"]
    assert len(own["sums"]) == 24
    for expected, found in zip(own["sums"], served["sums"], strict=True):
        assert found == pytest.approx(expected, abs=1e-3)
    for task, metrics in own["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                assert served["results"][task][metric] == pytest.approx(value, rel=1e-3), (task, metric)
