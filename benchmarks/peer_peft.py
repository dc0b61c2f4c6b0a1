"""PEFT at work: reads requests, one JSON object a line, and answers each with one.

Run by `siltstone bench wake` in the peers' virtual environment; imports nothing of Siltstone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

CONTEXT_TOKENS = 64
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Peer:
    """One model under many adapters, and the same model without any."""

    def __init__(self, shape: dict[str, int | float], rank: int, adapters: int) -> None:
        torch.set_num_threads(1)
        config = LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["d_model"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            head_dim=shape["head_dim"],
            intermediate_size=shape["d_mlp"],
            rms_norm_eps=shape["norm_eps"],
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
        torch.manual_seed(0)
        self.bare = LlamaForCausalLM(config).eval()
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=LINEARS, init_lora_weights=False)
        model = LlamaForCausalLM(config)
        model.load_state_dict(self.bare.state_dict())
        self.names = [f"user-{number}" for number in range(adapters)]
        self.bent = get_peft_model(model, lora, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.bent.add_adapter(name, lora)
        with torch.no_grad():
            for name, parameter in self.bent.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.02)
        self.bent.eval()
        self.optimisers: dict[str, torch.optim.AdamW] = {}
        self.turn = 0

    def versions(self) -> dict[str, object]:
        floats = sum(p.numel() for name, p in self.bent.named_parameters() if f".{self.names[0]}." in name)
        return {
            "torch": torch.__version__,
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "adapter_numbers": floats,
        }

    def check(self) -> str:
        """Says what is wrong with a mixed batch, or nothing: its rows must be those of each adapter alone."""
        ids = torch.randint(0, self.bare.config.vocab_size, (len(self.names[:3]), 9))
        names = self.names[:3]
        with torch.no_grad():
            mixed = self.bent(input_ids=ids, adapter_names=names).logits
            for row, name in enumerate(names):
                self.bent.set_adapter(name)
                alone = self.bent(input_ids=ids[row : row + 1]).logits
                if (mixed[row] - alone[0]).abs().max() > 1e-3 * alone.abs().max():
                    return f"row {row} of a mixed batch is not the adapter's alone"
                bare = self.bare(input_ids=ids[row : row + 1]).logits
                if (bare - alone).abs().max() < 1e-2 * alone.abs().max():
                    return "an adapter changes hardly anything"
        return ""

    def decode(self, users: int, steps: int) -> dict[str, float]:
        """Times a block of decode steps of the mixed batch, then one of the bare model: seconds a step."""
        chosen = [self.names[row % len(self.names)] for row in range(users)]
        return {
            "bent_s": self._decode(self.bent, users, steps, {"adapter_names": chosen}),
            "bare_s": self._decode(self.bare, users, steps, {}),
        }

    def _decode(self, model: Callable[..., object], users: int, steps: int, extra: dict[str, object]) -> float:
        ids = torch.randint(0, self.bare.config.vocab_size, (users, 1))
        config = self.bare.config
        size = (users, config.num_key_value_heads, CONTEXT_TOKENS, config.head_dim)
        with torch.no_grad():
            cache = DynamicCache()
            for layer in range(config.num_hidden_layers):
                cache.update(torch.randn(size), torch.randn(size), layer)
            start_s = 0.0
            for step in range(steps + 1):
                if step == 1:
                    start_s = time.process_time()
                model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
            return (time.process_time() - start_s) / steps

    def update(self, tokens: int) -> dict[str, float]:
        """Times one user's update, the next user's each time: activate, forward, backward, AdamW."""
        name = self.names[self.turn % len(self.names)]
        self.turn += 1
        ids = torch.randint(0, self.bare.config.vocab_size, (1, tokens + 1))
        self.bent.train()
        # Moments from an earlier update, as a user who comes back has them.
        if name not in self.optimisers:
            self.bent.set_adapter(name)
            own = [p for n, p in self.bent.named_parameters() if f".{name}." in n]
            self.optimisers[name] = torch.optim.AdamW(own, lr=1e-4)
            self._step(name, ids)
        start_s = time.process_time()
        self._step(name, ids)
        seconds = time.process_time() - start_s
        self.bent.eval()
        return {"seconds": seconds}

    def _step(self, name: str, ids: torch.Tensor) -> None:
        self.bent.set_adapter(name)
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        logits = self.bent(input_ids=ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).backward()
        optimiser.step()


def main() -> None:
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        if what == "open":
            peer = Peer(**request)
            reply: dict[str, object] = peer.versions()
        elif peer is None:
            reply = {"error": "not open"}
        elif what == "check":
            reply = {"complaint": peer.check()}
        elif what == "decode":
            reply = dict(peer.decode(**request))
        else:
            reply = dict(peer.update(**request))
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
