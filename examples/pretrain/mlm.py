"""Masked-language modelling: vocabulary, blocks, masks, model, and the unigram line to beat."""

import math
import zlib
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))
NOT_A_TARGET = -100  # the label that cross_entropy ignores
HELD_OUT_EVERY = 20


class Split(NamedTuple):
    """Blocks of token ids, (blocks, length) each."""

    train: Tensor
    held_out: Tensor


def train_wordpiece(documents: list[str], vocab_size: int) -> Tokenizer:
    """BERT's lower-cased WordPiece; the same documents always give the same vocabulary."""
    tokenizer = wordpiece({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    # The trainer numbers the "##" letters in the order of a randomly seeded hash map and breaks
    # ties between merges by number (huggingface/tokenizers#1794). Named up front, they come out
    # in this order; the vocabulary is then moved to a tokenizer in which they are plain pieces.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + continuing_letters(documents, tokenizer),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return wordpiece(tokenizer.get_vocab())


def wordpiece(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def continuing_letters(documents: list[str], tokenizer: Tokenizer) -> list[str]:
    """Every letter found past the first of a word, spelled "##x"."""
    letters: set[str] = set()
    for document in documents:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(document)
        )
        letters.update(*(word[1:] for word, _ in words))
    return [f"##{letter}" for letter in sorted(letters)]


def cut_blocks(documents: list[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """All documents in a row, [SEP] after each, cut into [CLS] ... [SEP]: (blocks, length)."""
    stream = [
        token for encoding in tokenizer.encode_batch(documents) for token in (*encoding.ids, SEP)
    ]
    count = len(stream) // (length - 2)
    blocks = torch.full((count, length), SEP)
    blocks[:, 0] = CLS
    blocks[:, 1:-1] = torch.tensor(stream[: count * (length - 2)]).view(count, length - 2)
    return blocks


def split_blocks(blocks: Tensor) -> Split:
    """Every 20th block is held out, whatever the seed."""
    held_out = torch.arange(1, len(blocks) + 1) % HELD_OUT_EVERY == 0
    return Split(blocks[~held_out], blocks[held_out])


class ReplayableMasking(DataCollatorForLanguageModeling):
    """BERT's masking, with masks that depend on the batch and on nothing else.

    A resumed run draws its first batches before Trainer restores the random state, so masks taken
    from the global generator would differ from those of the uninterrupted run. Training batches
    are shuffled anew in each epoch and get new masks; held-out batches keep theirs in every run.
    """

    def torch_call(self, examples: list[Tensor]) -> dict[str, Tensor]:
        blocks = torch.stack(examples)
        self.generator = torch.Generator().manual_seed(zlib.crc32(blocks.numpy().tobytes()))
        input_ids, labels = self.torch_mask_tokens(blocks, blocks < len(SPECIAL_TOKENS))
        return {"input_ids": input_ids, "labels": labels}


def fast_tokenizer(tokenizer: Tokenizer, length: int) -> PreTrainedTokenizerFast:
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    )


def build_bert(vocab_size: int, width: int, layers: int, length: int) -> BertForMaskedLM:
    """BERT's proportions, down to the spread of initial weights: 0.02 at the width of 768.

    Without dropout, which a few passes with a small model have no use for.
    """
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64 if width % 64 == 0 else 1,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        initializer_range=0.02 * math.sqrt(768 / width),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    model = BertForMaskedLM(config)
    # Tied weights are saved once; without this Trainer would report their twins missing on resume.
    model._keys_to_ignore_on_save = set(model.all_tied_weights_keys)
    return model


def unigram_log_probs(train: Tensor, vocab_size: int) -> np.ndarray:
    """Log-probability of each token by frequency alone: what a model that ignores context can know.

    Estimator: p(w) = (n(w) + 1) / (N + V), add-one smoothing, where n(w) counts w in the training
    blocks and N and V count tokens and vocabulary without the special tokens, which are never
    targets.
    """
    counts = torch.bincount(train.flatten(), minlength=vocab_size).double() + 1
    counts[: len(SPECIAL_TOKENS)] = 0
    return torch.log(counts / counts.sum()).numpy()


def score_targets(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats and hit or miss of each position: (batch, length, 2)."""
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=NOT_A_TARGET, reduction="none"
    )
    hits = logits.argmax(-1) == labels
    return torch.stack([losses.view_as(labels), hits], dim=-1)


def held_out_metrics(scores: EvalPrediction, log_probs: np.ndarray) -> dict[str, float]:
    """Means over the masked tokens of the held-out set; the unigram line is over the same."""
    targets = scores.label_ids != NOT_A_TARGET
    losses, hits = scores.predictions[targets].astype(np.float64).T
    return {
        "cross_entropy": losses.mean(),
        "accuracy": hits.mean(),
        "unigram": -log_probs[scores.label_ids[targets]].mean(),
        "targets": int(targets.sum()),
    }
