"""A sharded checkpoint of Llama, random weights, planned without weights and shrunk on disk.

    python -m scripts.planner.run files lines.jsonl

The acts are processes of their own: making the shards, planning and shrinking, and loading the
result with transformers alone. Memory is the resident peak of each, imports included.
"""

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.planner.child import child_line

GIB = 2**20  # of the kilobytes that the system tells
SIZES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "1.1 B": (2048, 5632, 22, 32, 8, 32000),
}
SHARDS = 4
TOKENS = 16
SHARE = 0.5
ACTS = ("make", "shrink", "load")


def files_lines(python: str = sys.executable) -> Iterator[dict[str, Any]]:
    """Yield a line for each size and act."""
    for name in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for act in ACTS:
                line = child_line(python, "scripts.planner.files", act, name, folder)
                yield {"list": "files", "name": name, "act": act, **line}


def make(config: Any, folder: Path) -> dict[str, Any]:
    """Write a checkpoint as `save_pretrained` does, one tensor at a time."""
    import torch

    from pbcompress.core.sharded_files import INDEX, shard_writer

    model = empty_model(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    places, noise = {}, (torch.randn(2**20) * 0.02).bfloat16()
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        own = shapes[number * len(shapes) // SHARDS : (number + 1) * len(shapes) // SHARDS]
        held = [(name, "BF16", shape) for name, shape in own]
        with shard_writer(folder / file, held, {"format": "pt"}) as content:
            for _, shape in own:
                size = math.prod(shape)
                weight = noise.repeat(size // len(noise) + 1)[:size] if len(shape) > 1 else noise
                content.write(weight[:size].view(torch.int16).numpy().data)
        places.update({name: file for name, _ in own})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return {"params": sum(p.numel() for p in model.parameters())}


def shrink(config: Any, folder: Path) -> dict[str, Any]:
    """Plan without weights and write the shrunk checkpoint."""
    import torch

    import pbcompress as pb

    start = time.process_time()
    inputs = {"input_ids": torch.arange(TOKENS)[None], "use_cache": False}
    plan = pb.plan_widths(empty_model(config), inputs, SHARE)
    planned = time.process_time()
    pb.shrink_files(plan, folder, folder / "small")
    return {
        "plan_seconds": planned - start,
        "shrink_seconds": time.process_time() - planned,
        "stated": dict(plan.stated),
        "proven": plan.proven,
        "params": plan.cost_after.params,
    }


def load(_: Any, folder: Path) -> dict[str, Any]:
    """Load the result with transformers alone and let it write."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "small", dtype=torch.bfloat16).eval()
    tokens = model.generate(torch.arange(4)[None], max_new_tokens=2, do_sample=False)
    used = "pbcompress" in sys.modules
    params = sum(p.numel() for p in model.parameters())
    return {"params": params, "tokens": tokens.shape[1], "with_pbcompress": used}


def empty_model(config: Any) -> Any:
    """Return the network on the meta device."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(config).eval()


def act(name: str, size: str, folder: str) -> dict[str, Any]:
    """Do one act in this process and return what it took."""
    from transformers import LlamaConfig

    hidden, inner, layers, heads, key_heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
    )
    line: dict[str, Any] = {"make": make, "shrink": shrink, "load": load}[name](
        config, Path(folder)
    )
    return {**line, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB}


if __name__ == "__main__":
    print(json.dumps(act(*sys.argv[1:])))
