"""What vLLM makes of an exported directory: ``python -P vllm_probe.py EXPORT REQUEST ANSWER``.

REQUEST is JSON {"chats": [messages], "max_tokens": int}; ANSWER, for each chat {"prompt": ids, "completion": ids,
"logps": of every token but the first, given those before it}, decoded greedily. Needs vLLM and nothing of align.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams


def answer(request: RequestOutput) -> dict[str, Any]:
    prompt, completion = list(request.prompt_token_ids), list(request.outputs[0].token_ids)
    entries = [*request.prompt_logprobs[1:], *request.outputs[0].logprobs]  # the first token has nothing before it
    tokens = [*prompt[1:], *completion]
    logps = [entry[token].logprob for entry, token in zip(entries, tokens, strict=True)]
    return {"prompt": prompt, "completion": completion, "logps": logps}


if __name__ == "__main__":
    export, asked, answered = sys.argv[1:]
    request = json.loads(Path(asked).read_text())
    greedy = SamplingParams(temperature=0, max_tokens=request["max_tokens"], logprobs=0, prompt_logprobs=0)
    engine = LLM(export, dtype="float32", enforce_eager=True, max_model_len=256, seed=0)
    outputs = engine.chat(request["chats"], greedy, use_tqdm=False)
    Path(answered).write_text(json.dumps([answer(output) for output in outputs]))
