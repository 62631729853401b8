"""Reasoner: a model of p̂(next state | states so far), the one thing that all four algorithms act on.

A reasoner with `window` 1 sees the current state only, the paper's setting: it has a state kernel, and its walks are
those of a table. With a longer window it has none, and `context_kernel` averages its predictions over sampled contexts.

A softmax over N states never gives an impossible step probability 0, and a leak of 1e-5 a state swamps the true escape
rate ε/M (THEORY section 3, "Softmax leak"). So a reasoner carries a support mask: *cut* predictions are a softmax over
the supported steps, *raw* ones ignore the mask.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from scipy import sparse as sp
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mcot_torch.errors import InputError
from mcot_torch.sampling.walks import StepTable, TableWalker, Walker
from mcot_torch.system.files import READ_ERRORS, read_json, read_tensors, save_tensors, tensor_shapes, write_text

__all__ = ["Policy", "Reasoner", "entries_at", "lists_pay", "load_reasoner", "rows_at_once"]

Policy = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Changes predictions: (states (B,) int64, log-probabilities (B, S) float64 of the next states that the third argument lists,
(B, S), or of all N where it is None) -> log-probabilities (B, S). What is −∞ stays −∞: such a step is not supported."""

# predictions held at once where rows can be taken in blocks: in float32 16 MiB, near what a CPU's cache holds, and .13 GiB
_CPU_CELLS, _GPU_CELLS = 2**22, 2**25
_SHORT = 16  # lists of supported steps pay where they are this many times shorter than a row of all states
_LARGEST_SIZE, _LARGEST_WINDOW = 2_000_000, 65_536  # of a model that is read from a file
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}  # as safetensors calls them


_listed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # support -> (its version, what `_listing` gives)


def rows_at_once(cells: int, device: torch.device) -> int:
    """How many rows of so many predictions each are worked on at once: all of them, below some thousand states."""
    return max(1, (_CPU_CELLS if device.type == "cpu" else _GPU_CELLS) // cells)


def lists_pay(most: int, n_states: int) -> bool:
    """Whether supported steps are listed where no state has more than `most`."""
    return most * _SHORT <= n_states


def entries_at(table: Tensor, states: Tensor, listed: Tensor | None) -> Tensor:
    """(..., S) entries of an (N, N) table: those of (...,) states and the next states `listed` for them; whole rows with None."""
    return table[states] if listed is None else table[states[..., None], listed]


class Reasoner(nn.Module, ABC):
    """Predicts the next of N states from the last `window` states; a subclass needs `forward`, and nothing else.

    A class is written to and read from files under its `kind`, by default its name.

    Attributes:
        n_states: N.
        window: how many of the last states a prediction may depend on; 1 is the paper's setting.
        support: (N, N) bool buffer, the steps that survived the cut, row = current state; all True before it.
    """

    support: Tensor
    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Reasoner]]] = {}

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__ and "logits_of" not in cls.__dict__:
            cls.logits_of = Reasoner.logits_of  # type: ignore[method-assign]  # an inherited one would ignore the new `forward`
        cls.kind = kind or cls.__name__
        Reasoner.kinds[cls.kind] = cls

    def __init__(self, n_states: int, window: int = 1) -> None:
        super().__init__()
        self.n_states = n_states
        self.window = window
        self.register_buffer("support", torch.ones(n_states, n_states, dtype=torch.bool))

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor:
        """Raw logits (B, T, N) of the next state after each prefix of `states` (B, T) int64, T ≤ window."""

    def settings(self) -> dict[str, Any]:
        """Constructor arguments, JSON-serialisable: by default the attributes of the same names."""
        names = inspect.signature(type(self)).parameters
        if missing := [name for name in names if not hasattr(self, name)]:
            raise InputError(
                f"{type(self).__name__} does not keep its constructor argument {missing[0]}, so that no file can hold it; "
                f"keep it as an attribute of that name, or give settings()"
            )
        return {name: getattr(self, name) for name in names}

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.support.device

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    # ---- predictions --------------------------------------------------------------------------------------------

    def log_probs(self, states: Tensor, cut: bool = True) -> Tensor:
        """(B, T, N) log p̂(next | prefix); with `cut`, unsupported steps have logit −∞."""
        allowed = self.support[states] if cut and not self._listing()[0] else None
        return self.logits_among(states, None, allowed).log_softmax(-1)

    # ---- predictions of the supported steps: of a large graph they are few, and so is what they cost ---------------

    @property
    def lists(self) -> Tensor | None:
        """(N, S) int64, S next states of each state, ascending, the supported ones among them; None where S is no small part of N.

        S is the largest number of supported steps of a state: the lists of other states hold steps that are not supported.
        """
        return self._listing()[1]

    def _listing(self) -> tuple[bool, Tensor | None, Tensor | None]:
        """Whether every step is supported; the lists; x N + y of all listed steps (N·S,), ascending.

        Found anew when the support was written to in place (not through `.data`, which torch does not count).
        """
        version = None if self.support.is_inference() else self.support._version
        known, listing = _listed.get(self.support, (None, None))
        if version is None or known != version:
            degree, lists, keys = self.support.sum(-1), None, None
            most, uncut = int(degree.max()), bool((degree == self.n_states).all())
            if lists_pay(most, self.n_states):
                lists = self.support.to(torch.uint8).topk(most).indices.sort(-1).values
                keys = (torch.arange(self.n_states, device=lists.device)[:, None] * self.n_states + lists).ravel()
            listing = uncut, lists, keys
            _listed[self.support] = version, listing
        return listing

    @property
    def list_length(self) -> int:
        """S, or N where there are no lists: the last dimension of what `listed_log_probs` gives."""
        return self.n_states if self.lists is None else self.lists.shape[1]

    @property
    def step_lists(self) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(width=self.list_length, places=self.places)

    @property
    def cells(self) -> int:
        """Numbers held for each context while its predictions are made: blocks of contexts are sized by it."""
        return self.list_length

    def listed(self, states: Tensor) -> Tensor | None:
        """(..., S) the lists of (...,) states, or None."""
        return None if self.lists is None else self.lists[states]

    def allowed(self, states: Tensor) -> Tensor | None:
        """(..., S) bool, which of the listed steps of (...,) states are supported; None where all are."""
        return None if self._listing()[0] else self.pick(self.support, states)

    def pick(self, table: Tensor, states: Tensor) -> Tensor:
        """(..., S) the entries of an (N, N) table at the lists of (...,) states; its rows where there are no lists."""
        return entries_at(table, states, self.listed(states))

    def places(self, states: Tensor, after: Tensor) -> Tensor:
        """(...,) where the supported steps from (...,) states to (...,) `after` stand in the lists; somewhere in them for others."""
        _, lists, keys = self._listing()
        if lists is None or keys is None:
            return after
        length = lists.shape[1]
        return (torch.searchsorted(keys, states * self.n_states + after) - states * length).clamp(0, length - 1)

    def logits_of(self, states: Tensor, after: Tensor) -> Tensor:
        """Raw logits (B, T, D) of some next states (B, T, D); a model that need not compute all of them for it says so here."""
        return self(states).gather(-1, after)

    def logits_among(self, states: Tensor, listed: Tensor | None, allowed: Tensor | None) -> Tensor:
        """(B, T, S) logits of `listed` next states, of all N with None; −∞ where they are not `allowed`."""
        logits = self(states) if listed is None else self.logits_of(states, listed)
        return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)

    def listed_log_probs(self, states: Tensor) -> Tensor:
        """(B, T, S) log p̂ of the listed next states: `log_probs` without the steps that no list names."""
        return self.logits_among(states, self.listed(states), self.allowed(states)).log_softmax(-1)

    def log_probs_of(self, states: Tensor, after: Tensor | None) -> Tensor:
        """(B, T, D) log p̂ of some next states (B, T, D), cut; of all N with None."""
        if after is None:
            return self.log_probs(states)
        here = states[..., None]
        found = self.listed_log_probs(states).gather(-1, self.places(here, after))
        return torch.where(self.support[here, after], found, -torch.inf)

    def _require_window_1(self, what: str) -> None:
        if self.window != 1:
            raise ValueError(
                f"{what} needs window 1, and this reasoner has window {self.window}: its next step depends on history; "
                f"use context_kernel(paths) for predictions averaged over contexts"
            )

    @torch.no_grad()
    def kernel_rows(self, cut: bool = True, policy: Policy | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The kernel in blocks of rows: (B,) int64 states and their (B, N) float64 predictions, changed by `policy`."""
        self._require_window_1("kernel()")
        for block in torch.arange(self.n_states, device=self.device).split(rows_at_once(self.n_states, self.device)):
            allowed = self.support[block, None] if cut and not self._listing()[0] else None
            logits = self.logits_among(block[:, None], None, allowed)[:, 0].double()
            yield block, logits.softmax(-1) if policy is None else policy(block, logits.log_softmax(-1), None).exp()

    def kernel(self, cut: bool = True, policy: Policy | None = None) -> Tensor:
        """(N, N) float64 p̂(y | x), changed by `policy`; `ValueError` unless the window is 1."""
        kernel = torch.empty(self.n_states, self.n_states, dtype=torch.float64, device=self.device)
        for states, rows in self.kernel_rows(cut, policy):
            kernel[states] = rows
        return kernel

    def to_scipy(self, policy: Policy | None = None) -> sp.csr_array:
        """The cut kernel, changed by `policy`, as (N, N) CSR: no table of all pairs is made."""
        if self.lists is not None:
            return self.table(policy).to_scipy()
        return sp.vstack(
            [sp.csr_array(rows.cpu().numpy()) for _, rows in self.kernel_rows(policy=policy)], format="csr"
        )

    @torch.no_grad()
    def context_kernel(
        self, paths: Tensor, cut: bool = True, policy: Policy | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions averaged over the contexts in `paths` that end in the same state.

        Args:
            paths: (B, T) int64, T ≤ window; every prefix is a context.
            cut: as in `log_probs`.
            policy: changes the predictions, as it does in `walker`.

        Returns:
            kernel (N, N) float64, zero on rows without a context; visits (N,) float64, contexts that end in each state;
            spread (N,) float64, mean total variation between a context's prediction and the row's average.
        """
        total = torch.zeros(self.n_states, self.n_states, dtype=torch.float64, device=self.device)
        visits = torch.zeros(self.n_states, dtype=torch.float64, device=self.device)
        spread = torch.zeros_like(visits)

        def predictions() -> Iterator[tuple[Tensor, Tensor]]:
            for block in paths.to(self.device).split(256):
                log_p = self.log_probs(block, cut).double().flatten(0, 1)
                yield block.reshape(-1), (policy(block.reshape(-1), log_p, None) if policy else log_p).exp()

        for states, p in predictions():
            total.index_add_(0, states, p)
            visits += torch.bincount(states, minlength=self.n_states)
        kernel = total / visits.clamp_min(1)[:, None]
        for states, p in predictions():
            spread.index_add_(0, states, (p - kernel[states]).abs().sum(-1) / 2)
        return kernel, visits, spread / visits.clamp_min(1)

    @torch.no_grad()
    def cut_(self, kernel: Tensor, threshold: float) -> int:
        """Drop the steps whose probability in `kernel` (N, N) is below `threshold`; returns how many are left.

        Algorithm 1's cut between its two stages. A row keeps its likeliest step whatever the threshold.
        """
        keep = (kernel >= threshold) & self.support
        keep[torch.arange(self.n_states), kernel.argmax(-1)] = True
        self.support.copy_(keep)
        return int(keep.sum())

    # ---- walks --------------------------------------------------------------------------------------------------

    def walker(self, start: Tensor, generator: torch.Generator, policy: Policy | None = None) -> Walker:
        """Walkers of this reasoner from the (W,) `start` states; `policy` changes its predictions on the way."""
        if self.window == 1:
            return TableWalker(self.table(policy), start, generator)
        from mcot_torch.reasoners.decoding import ContextWalker

        return ContextWalker(self, start, generator, policy)

    @torch.no_grad()
    def table(self, policy: Policy | None = None) -> StepTable:
        """The reasoner's cut kernel, changed by `policy`, as a table to walk on; window 1 only."""
        self._require_window_1("table()")
        if self.lists is None:
            return StepTable.from_scipy(self.to_scipy(policy), self.device)
        rows = []
        for x in torch.arange(self.n_states, device=self.device).split(rows_at_once(self.cells, self.device)):
            logits = self.logits_among(x[:, None], self.listed(x[:, None]), self.allowed(x[:, None]))
            log_p = logits[:, 0].double().log_softmax(-1)
            rows.append((log_p if policy is None else policy(x, log_p, self.lists[x])).exp())
        return StepTable.from_lists(self.lists, torch.cat(rows))

    def generate(self, start: Tensor, n_steps: int, generator: torch.Generator, policy: Policy | None = None) -> Tensor:
        """(W, n_steps + 1) int64 chains of thought from the (W,) `start` states, starts included."""
        walker = self.walker(start, generator, policy)
        return torch.cat([walker.states[:, None], walker.advance(n_steps)], dim=1)

    # ---- files --------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors and model.json, each under a temporary name first."""
        settings = json.dumps({"kind": self.kind, **self.settings()}, indent=2)
        save_tensors(Path(folder) / "model.safetensors", self.state_dict())
        write_text(Path(folder) / "model.json", settings)

    save_pretrained = save  # as the field calls it

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """As `load_reasoner`; `InputError` if the model there is no `cls`."""
        model = load_reasoner(folder, device)
        if not isinstance(model, cls):
            raise InputError(f"{folder}: holds a {type(model).__name__}, no {cls.__name__}; use load_reasoner")
        return model

    def check_buffers(self) -> str | None:
        """What is wrong with loaded buffers whose values must lie in a range, or None."""
        return None if bool(self.support.any(-1).all()) else "leaves a state without any supported step"


def load_reasoner(folder: str | Path, device: torch.device | str = "cpu") -> Reasoner:
    """Read what `Reasoner.save` wrote; `InputError` names the file and what is wrong.

    Nothing is unpickled, and nothing is allocated before the shapes and dtypes in the header of model.safetensors are known
    to be those of the model that model.json describes.
    """
    folder = Path(folder)
    settings = read_json(folder / "model.json")
    try:
        found = tensor_shapes(folder / "model.safetensors")
        _check_settings(settings, len(found))
        with torch.device("meta"):
            expected = {key: (tuple(x.shape), _DTYPES[x.dtype]) for key, x in _build(settings).state_dict().items()}
        if expected != found:
            key = next(iter(k for k in {**expected, **found} if expected.get(k) != found.get(k)))
            raise InputError(f"{folder}: model.safetensors does not fit model.json at {key}")
        model, (tensors, _) = _build(settings), read_tensors(folder / "model.safetensors")
    except FileNotFoundError:
        raise InputError(f"{folder}: no model here (model.safetensors is missing)") from None
    except InputError as error:
        raise error if str(error).startswith(str(folder)) else InputError(f"{folder}: {error}") from None
    except (*READ_ERRORS, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{folder}: the model cannot be read ({type(error).__name__}: {error})") from None
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{folder}: model.safetensors holds a non-finite number in {key}")
    model.load_state_dict(tensors)
    if wrong := model.check_buffers():
        raise InputError(f"{folder}: model.safetensors {wrong}")
    return model.to(device)


def _build(settings: dict[str, Any]) -> Reasoner:
    """The model that `settings` describe, its weights not yet read."""
    if settings["kind"] not in Reasoner.kinds:
        kind = str(settings["kind"])[:40]
        raise InputError(f"model.json: no class is known for the kind {kind!r}; import the module that defines it")
    return Reasoner.kinds[settings["kind"]](**{key: value for key, value in settings.items() if key != "kind"})


def _check_settings(settings: dict[str, Any], n_tensors: int) -> None:
    """Sizes that no header can vouch for: a window makes tables of its own, and a layer costs time before any memory."""
    inner = settings.get("model", settings)
    if not isinstance(inner, dict) or inner.get("kind") == "student":
        raise InputError("model.json describes no model")
    for key, value in {**settings, **inner}.items():
        most = n_tensors if key == "n_layers" else _LARGEST_WINDOW if key == "window" else _LARGEST_SIZE
        if not isinstance(value, (str, bool, dict)) and not (isinstance(value, int) and 1 <= value <= most):
            raise InputError(f"model.json: {key} is {str(value)[:40]}; it must be a whole number from 1 to {most:,}")
