"""What a plan takes in memory and time beside the model: Llamas of Hugging Face, random weights.

    python -m scripts.planner.run memory lines.jsonl

Each line is a process of its own. Memory is resident: the peak of the plan above what the process
held with the model, as a multiple of the model's bytes. Time is of the processor, as a multiple of
the median forward pass on the same inputs.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.planner.child import child_line

GIB = 2**30
TOKENS = 16
FORWARDS = 5
SHARE = 0.5
CASES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "0.2 B": (1024, 2816, 12, 16, 4, 32000),
    "0.9 B": (2048, 5632, 16, 32, 8, 32000),
    "7 B without weights": (4096, 11008, 32, 32, 32, 32000),
}


def memory_lines(python: str = sys.executable) -> Iterator[dict[str, Any]]:
    """Yield a line for each model and dtype."""
    for name in CASES:
        for dtype in ("float32",) if "without" in name else ("bfloat16", "float32"):
            line = child_line(python, "scripts.planner.memory", name, dtype)
            yield {"list": "memory", "name": name, "dtype": dtype, **line}


def planned(name: str, dtype: str) -> dict[str, Any]:
    """Plan one model in this process and return what that took."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import pbcompress as pb

    hidden, inner, layers, heads, key_heads, vocabulary = CASES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
    )
    no_weights = "without" in name
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device("meta" if no_weights else "cpu"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    inputs = {"input_ids": torch.arange(TOKENS)[None], "use_cache": False}
    line: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    forwards = []
    for _ in range(0 if no_weights else FORWARDS):
        start = time.process_time()
        with torch.no_grad():
            model(**inputs)
        forwards.append(time.process_time() - start)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = _resident("VmRSS"), time.process_time()
    plan = pb.plan_widths(model, inputs, SHARE)
    line["seconds"] = time.process_time() - start
    line["peak_gib"] = _resident("VmHWM") / GIB
    line["share_of_target"] = plan.cost_after.params / plan.target_params
    if forwards:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        line["times_model"] = (_resident("VmHWM") - before) / size
        line["forwards"] = line["seconds"] / statistics.median(forwards)
    return line


def _resident(field: str) -> int:
    """Return bytes of this process's memory: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{field}:"))
    return int(found.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(planned(*sys.argv[1:])))
