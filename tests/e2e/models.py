"""Small models of many kinds, each with its batches and its loss, for comparing training runs.

Dropout is 0 throughout, so that every way of training draws the same (no) random numbers.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

VOCABULARY = 64
Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One model to train: how to build it, what it reads, and its loss for one batch."""

    build: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Batch]
    loss: Callable[..., torch.Tensor]

    def model(self) -> nn.Module:
        """The model with its weights, the same on every rank."""
        torch.manual_seed(0)
        return self.build()

    def batch(self, step: int, rank: int) -> Batch:
        """What ``rank`` reads at ``step``."""
        return self.draw(torch.Generator().manual_seed(1000 * step + rank))


class Convolutional(nn.Module):
    """Two convolutions with BatchNorm and a classifier of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 17, 3, stride=2, bias=False),
            nn.BatchNorm2d(17),
            nn.ReLU(),
        )
        self.classes = nn.Linear(17, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classes(self.body(images).mean((2, 3)))


class Recurrent(nn.Module):
    """An embedding, a two-layer LSTM and a linear output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.out = nn.Linear(24, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embed(tokens))[0])


def demo_gpt() -> nn.Module:
    """The model that the demo trains, 10.7 million parameters."""
    from gpt import GPT, Config  # type: ignore[import-not-found]

    return GPT(Config())


def gpt() -> nn.Module:
    from gpt import GPT, Config  # type: ignore[import-not-found]

    return GPT(Config(layers=2, heads=2, width=32, context=16))


def hugging_face(kind: str, **config: Any) -> Callable[[], nn.Module]:
    """A tiny random-weight model of ``transformers``, of the class ``kind``."""

    def build() -> nn.Module:
        import transformers

        model_class = getattr(transformers, kind)
        return model_class(model_class.config_class(vocab_size=VOCABULARY, **config))

    return build


def draw_tokens(generator: torch.Generator) -> Batch:
    return (torch.randint(1, VOCABULARY, (2, 12), generator=generator),)


def draw_images(generator: torch.Generator) -> Batch:
    images = torch.randn(4, 3, 8, 8, generator=generator)
    return images, torch.randint(10, (4,), generator=generator)


def gpt_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens[:, :-1], tokens[:, 1:])


def hugging_face_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False)["loss"]


def masked_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, labels=tokens)["loss"]


def recurrent_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def image_loss(model: Any, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(images), classes)


_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
_GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_BERT = {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}
_BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
_T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
_MIXTRAL = _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}


def _language_model(kind: str, **config: Any) -> Case:
    return Case(hugging_face(kind, **config), draw_tokens, hugging_face_loss)


CASES: dict[str, Case] = {
    "gpt": Case(gpt, draw_tokens, gpt_loss),
    "llama": _language_model("LlamaForCausalLM", **_DECODER | {"num_hidden_layers": 2}),
    "gpt2": _language_model("GPT2LMHeadModel", **_GPT2, **_NO_DROPOUT),
    "qwen3": _language_model("Qwen3ForCausalLM", **_DECODER, head_dim=8),
    "mixtral": _language_model("MixtralForCausalLM", **_MIXTRAL),
    "bert": Case(hugging_face("BertForMaskedLM", **_BERT), draw_tokens, masked_loss),
    "t5": _language_model("T5ForConditionalGeneration", **_T5),
    "conv": Case(Convolutional, draw_images, image_loss),
    "lstm": Case(Recurrent, draw_tokens, recurrent_loss),
}
