"""A TransformerReasoner as a Hugging Face causal language model whose tokens are states; the extra is `hf`.

`transformers` knows our architecture as NanoChat: pre-norm RMSNorm without weights, also behind the embedding, rotary
positions, normalised queries and keys, an ungated MLP, no biases. Three differences are absorbed exactly:
- NanoChat turns queries and keys the other way: the two halves of every head change places.
- It turns before it normalises: a rotation keeps the norm, so the order does not matter.
- Its angles are θ^(-i/h), ours 10000^(-i/(h - 1)), i = 0 .. h - 1: equal for θ = 10000^(h/(h - 1)).

What does not travel is the cut: the logits are the raw ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcot_torch.errors import InputError
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.transformer import TransformerReasoner

if TYPE_CHECKING:
    from transformers import NanoChatForCausalLM

__all__ = ["to_huggingface"]


def to_huggingface(reasoner: Reasoner) -> NanoChatForCausalLM:
    """A model of `transformers` with the logits of `reasoner`, on the CPU.

    Its `save_pretrained(folder)` writes what `AutoModelForCausalLM.from_pretrained(folder)` reads without code of ours. Give
    it at most `reasoner.window` states (B, T) int64 at a time: more were never trained on.

    Args:
        reasoner: a `TransformerReasoner`.

    Returns:
        The model in float32; `model(input_ids=states).logits` is (B, T, N), raw.

    Raises:
        InputError: another kind of reasoner, or no `transformers` of version 5 or later.
    """
    if not isinstance(reasoner, TransformerReasoner):
        raise InputError(
            f"a {type(reasoner).__name__} is no transformer; to_huggingface takes a TransformerReasoner, and "
            "save_reasoner writes any reasoner as safetensors and JSON"
        )
    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM
    except ImportError:
        raise InputError(
            'to_huggingface needs transformers 5 or later, which is not installed; pip install "mcot_torch[hf]"'
        ) from None
    half = reasoner.width // reasoner.n_heads // 2
    config = NanoChatConfig(
        vocab_size=reasoner.n_states,
        hidden_size=reasoner.width,
        intermediate_size=4 * reasoner.width,
        num_hidden_layers=reasoner.n_layers,
        num_attention_heads=reasoner.n_heads,
        max_position_embeddings=reasoner.window,
        hidden_act="gelu",
        rms_norm_eps=torch.finfo(torch.float32).eps,  # what F.rms_norm takes
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0 ** (half / max(1, half - 1))},
        final_logit_softcapping=None,
        tie_word_embeddings=reasoner.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = NanoChatForCausalLM(config).eval()
    model.load_state_dict(_weights(reasoner))
    return model


def _weights(reasoner: TransformerReasoner) -> dict[str, Tensor]:
    """Our matrices under NanoChat's names."""
    weights = {"model.embed_tokens.weight": reasoner.embedding.weight, "lm_head.weight": reasoner.head.weight}
    for number, block in enumerate(reasoner.blocks):
        query, key, value = block.qkv.weight.chunk(3)
        parts = {
            "self_attn.q_proj": _turned(query, reasoner.n_heads),
            "self_attn.k_proj": _turned(key, reasoner.n_heads),
            "self_attn.v_proj": value,
            "self_attn.o_proj": block.out.weight,
            "mlp.fc1": block.up.weight,
            "mlp.fc2": block.down.weight,
        }
        weights |= {f"model.layers.{number}.{name}.weight": weight for name, weight in parts.items()}
    return {name: weight.detach().cpu() for name, weight in weights.items()}


def _turned(weight: Tensor, n_heads: int) -> Tensor:
    """(width, width) with the two halves of every head exchanged: a rotation by -θ becomes one by θ."""
    first, second = weight.view(n_heads, 2, -1, weight.shape[1]).unbind(1)
    return torch.stack([second, first], dim=1).reshape(weight.shape)
