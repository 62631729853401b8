"""TransformerReasoner: a tiny decoder-only transformer over states.

Pre-norm RMSNorm without weights, rotary positions, normalised queries and keys, scaled-dot-product attention, GELU
MLP, no biases, zero-initialised output projections (each block starts as the identity), optional tied embedding.
All initialisation stands in `reset_parameters`. `CachedDecoder` decodes one step at a time with a key-value `Cache`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcot_torch.errors import InputError
from mcot_torch.reasoners.decoding import Decoder
from mcot_torch.reasoners.reasoner import Reasoner

__all__ = ["Cache", "CachedDecoder", "TransformerReasoner"]


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


class Cache:
    """Keys and values of the states read so far, preallocated for `window` positions."""

    def __init__(self, model: TransformerReasoner, n_walkers: int) -> None:
        shape = (model.n_layers, 2, n_walkers, model.n_heads, model.window, model.width // model.n_heads)
        self.keys_values = torch.empty(shape, device=model.device, dtype=model.embedding.weight.dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (W, H, T, d) keys and values of one layer; returns all of them so far."""
        end = self.length + k.shape[2]
        self.keys_values[layer, 0, :, :, self.length : end] = k
        self.keys_values[layer, 1, :, :, self.length : end] = v
        return self.keys_values[layer, 0, :, :, :end], self.keys_values[layer, 1, :, :, :end]

    def keep(self, alive: Tensor) -> None:
        """Drop the walkers not marked in (W,) bool `alive`."""
        self.keys_values = self.keys_values[:, :, alive]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def attention(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        b, t, width = x.shape
        if t == 1 and cache is None:  # softmax over one key is 1: the values pass through
            return self.out(F.linear(x, self.qkv.weight[2 * width :]))
        qkv = self.qkv(x).view(b, t, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
        (q, k), v = _rotate(_norm(qkv[:2]), *rotation), qkv[2]  # queries and keys together: half the kernels
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        return self.out(y.transpose(1, 2).reshape(b, t, width))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.attention(_norm(x), rotation, cache, layer)
        return x + self.down(F.gelu(self.up(_norm(x))))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (..., T, d) with (T, d/2) angles; the halves of d are the coordinates of each plane."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class TransformerReasoner(Reasoner, kind="transformer"):
    """N states in, logits over N states out; float32 parameters.

    Args:
        n_states: N.
        window: longest context.
        width: size of the residual stream; a multiple of 2 · n_heads.
        n_layers: number of blocks.
        n_heads: attention heads.
        tied: share the embedding with the output matrix.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        n_states: int,
        window: int = 1,
        width: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        tied: bool = False,
    ) -> None:
        super().__init__(n_states, window)
        if width % (2 * n_heads):
            raise InputError(f"reasoner.width is {width}; it must be a multiple of 2 * n_heads = {2 * n_heads}")
        self.width, self.n_layers, self.n_heads, self.tied = width, n_layers, n_heads, tied
        self.embedding = nn.Embedding(n_states, width)
        self.blocks: list[Block] = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))  # type: ignore[assignment]
        self.head = nn.Linear(width, n_states, bias=False)
        angle = torch.outer(torch.arange(window), 10_000.0 ** -torch.linspace(0, 1, width // n_heads // 2))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Embedding N(0, 1), matrices N(0, 1/fan_in), every projection back into the stream and the head 0."""
        self.embedding.weight.data.normal_(generator=generator)
        for block in self.blocks:
            for matrix in (block.qkv, block.up):
                matrix.weight.data.normal_(std=matrix.in_features**-0.5, generator=generator)
            block.out.weight.data.zero_()
            block.down.weight.data.zero_()
        if self.tied:
            self.embedding.weight.data.mul_(self.width**-0.5)
            self.head.weight = self.embedding.weight
        else:
            self.head.weight.data.zero_()

    def forward(self, states: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, N); with a cache, `states` are the ones not read yet and the cache grows by them."""
        return self.head(self.features(states, cache))

    def gather_logits(self, states: Tensor, after: Tensor) -> Tensor:
        """As `Reasoner.gather_logits`: only the rows of the output matrix that `after` names are read."""
        return self.head_of(self.features(states), after)

    def cached_decoder(self) -> Decoder:
        """As `Reasoner.cached_decoder`: keys and values of the states read so far are kept."""
        return CachedDecoder(self)

    @property
    def numbers_per_context(self) -> int:
        """As `Reasoner.numbers_per_context`: with lists, the rows of the output matrix that are read."""
        return super().numbers_per_context * (1 if self.support.successors is None else self.width)

    def head_of(self, x: Tensor, after: Tensor) -> Tensor:
        """(B, T, D) logits of the next states `after` (B, T, D) from features (B, T, width)."""
        return (F.embedding(after, self.head.weight) @ x[..., None])[..., 0]

    def features(self, states: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, width), what the output matrix is applied to."""
        first = 0 if cache is None else cache.length
        t = states.shape[1]
        if first + t > self.window:
            raise ValueError(f"{first + t} states do not fit the window of {self.window}")
        if first and t > 1:
            raise ValueError("a cache that holds states already is extended one state at a time")
        rotation = (self.cos[first : first + t], self.sin[first : first + t])
        x = _norm(self.embedding(states))  # (B, T, width)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, cache, layer)
        if cache is not None:
            cache.length += t
        return _norm(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As usual; a tied head is stored once, under the embedding's name."""
        state = super().state_dict(*args, **kwargs)
        if self.tied:
            state.pop("head.weight", None)
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As usual; a tied head is read under the embedding's name."""
        if self.tied:
            state_dict = {**state_dict, "head.weight": state_dict["embedding.weight"]}
        return super().load_state_dict(state_dict, strict, assign)


class CachedDecoder:
    """Decoder that reads every state once and keeps its keys and values."""

    def __init__(self, model: TransformerReasoner) -> None:
        self._model = model
        self._cache: Cache | None = None  # made when the number of walkers is known

    def logits(self, context: Tensor, successors: Tensor | None) -> Tensor:
        """As `Decoder.logits`; only the states that the cache has not read are read."""
        if self._cache is None:
            self._cache = Cache(self._model, len(context))
        x = self._model.features(context[:, self._cache.length :], self._cache)[:, -1:]
        return (self._model.head(x) if successors is None else self._model.head_of(x, successors[:, None]))[:, 0]

    def keep(self, alive: Tensor) -> None:
        """As `Decoder.keep`."""
        if self._cache is not None:
            self._cache.keep(alive)
