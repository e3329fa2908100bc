"""A causal language model of `transformers` as a `TokenModel`.

Shapes: N rows, L tokens, V vocabulary. Sequences are padded on the right for likelihoods and on the left to
generate, whatever the tokenizer's own setting; masks and positions make the two agree.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class CausalLM:
    """A language model and its tokenizer. `module` is in eval mode with nothing trainable; adapters change that."""

    def __init__(self, module: Any, tokenizer: Any, *, end_completions: bool = True):
        """`end_completions`: whether a completion is followed by the end token, which then counts as its last token.

        Raises ValueError for a tokenizer without an end token.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no end token; set tokenizer.eos_token before saving it")
        self.module: nn.Module = module.eval().requires_grad_(False)
        self.tokenizer, self.end_completions = tokenizer, end_completions
        self.end = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end)

    @classmethod
    def load(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> CausalLM:
        """A local folder of a causal model with its tokenizer. Never runs code of the model's own; safetensors only.

        Raises FileNotFoundError, naming the folder and the mend, if it cannot be read.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            if not Path(folder).is_dir():
                raise OSError("no such folder")
            local = {"local_files_only": True}
            module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"{folder}: cannot be read as a causal language model ({reason}); "
                "give a folder into which both the model and its tokenizer were saved with `save_pretrained`"
            ) from error
        return cls(module.to(device), tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def with_module(self, module: nn.Module) -> CausalLM:
        """The same model over another module of the same architecture."""
        other = copy.copy(self)
        other.module = module
        return other

    def logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Next-token logits [N, L, V] fp32: position i says what follows tokens[:, i]."""
        return self.module(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits.float()

    def encode(self, prompts: Sequence[str], completions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [N, L], attention mask [N, L] and completion mask [N, L], both bool.

        Prompt and completion are tokenised apart, so that a prompt's tokens do not depend on what follows it.
        """
        rows = [self._join(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        length = max(len(tokens) for tokens, _ in rows)
        tokens = torch.full((len(rows), length), self.pad)
        place = torch.arange(length)
        for row, (ids, _) in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        ends = torch.tensor([len(ids) for ids, _ in rows])[:, None]
        starts = torch.tensor([start for _, start in rows])[:, None]
        mask, completed = place < ends, (place >= starts) & (place < ends)
        return tokens.to(self.device), mask.to(self.device), completed.to(self.device)

    def _join(self, prompt: str, completion: str) -> tuple[list[int], int]:
        """Token ids of both, and where the completion starts."""
        first = list(self.tokenizer(prompt).input_ids)
        if first and first[-1] == self.end:
            first = first[:-1]  # some tokenizers end every text; a prompt does not end here
        second = list(self.tokenizer(completion, add_special_tokens=False).input_ids)
        return first + second + [self.end] * self.end_completions, len(first)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, seed: int, max_new_tokens: int, temperature: float = 1.0
    ) -> list[str]:
        """One completion per prompt, sampled from the model's own distribution; row r draws from (seed + r) alone."""
        given = [self._join(prompt, "")[0] for prompt in prompts]
        given = [ids[: len(ids) - self.end_completions] for ids in given]
        length = max(len(ids) for ids in given)
        tokens = torch.tensor([[self.pad] * (length - len(ids)) + ids for ids in given])  # ends stand in one column
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in given])
        seeded = [torch.Generator().manual_seed(seed + row) for row in range(len(given))]
        draws = [torch.rand(max_new_tokens, generator=generator) for generator in seeded]
        made = self._continue(tokens.to(self.device), mask.to(self.device), torch.stack(draws), temperature)
        ends = [row.index(self.end) if self.end in row else len(row) for row in made.tolist()]
        return [str(self.tokenizer.decode(row[:end])) for row, end in zip(made.tolist(), ends, strict=True)]

    def _continue(self, tokens: Tensor, mask: Tensor, draws: Tensor, temperature: float) -> Tensor:
        """What follows tokens [N, L], one token per uniform draw [N, M], until every row has ended: [N, <= M]."""
        cache, made = None, list[Tensor]()
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        given, position = tokens, (mask.cumsum(1) - 1).clamp(min=0)
        for draw in draws.to(tokens.device).unbind(1):
            output = self.module(
                input_ids=given, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            )
            chances = (output.logits[:, -1].double() / temperature).softmax(-1).cumsum(-1)
            token = torch.searchsorted(chances, draw.double()[:, None]).clamp(max=chances.shape[-1] - 1)
            token = torch.where(ended[:, None], self.end, token)
            made.append(token)
            ended |= token[:, 0] == self.end
            if bool(ended.all()):
                break
            cache, given, position = output.past_key_values, token, position[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(token)], 1)
        return torch.cat(made, 1)
