"""Writes stories-7m-nll.json: the negative log-likelihood of two short held-out stories, each with
bos before and eos after, as transformers computes it in float32. For executors too slow for the
whole perplexity of stories-7m.json.

    python test/goldens/make-stories-nll.py

Needs torch and transformers 5; not part of the test suite.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
MODEL = HERE.parent.parent / "models" / "stories-7m"

tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
lines = (MODEL / "heldout-stories.jsonl").read_text().splitlines()[:100]
texts = sorted((json.loads(line)["text"] for line in lines), key=len)[:2]
stories = []
for text in texts:
    ids = [1, *tokenizer.encode(text, add_special_tokens=False), 2]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    stories.append(dict(ids=ids, nll=nll.item()))
    print(len(ids), nll.item())
(HERE / "stories-7m-nll.json").write_text(json.dumps(stories))
