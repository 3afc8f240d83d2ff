"""Shapes of public models' parameters, as a training loop would hand them to an optimizer."""

Shape = tuple[int, ...]


def bert(vocab: int, hidden: int, layers: int, inner: int, positions: int) -> list[Shape]:
    """BertForPreTraining: embeddings, encoder, pooler, MLM and NSP heads; the decoder is tied."""
    norm = [(hidden,), (hidden,)]

    def linear(rows: int, columns: int) -> list[Shape]:
        return [(rows, columns), (rows,)]

    layer = [
        *(3 * linear(hidden, hidden)), *linear(hidden, hidden), *norm,
        *linear(inner, hidden), *linear(hidden, inner), *norm,
    ]  # fmt: skip
    embeddings = [(vocab, hidden), (positions, hidden), (2, hidden), *norm]
    heads = [*linear(hidden, hidden), *linear(hidden, hidden), *norm, (vocab,), *linear(2, hidden)]
    return [*embeddings, *(layers * layer), *heads]


SETS: dict[str, list[Shape]] = {
    "tiny": [(8,)] * 400,
    "swarm": [(64,)] * 10_000,
    "bert-base": bert(30_522, 768, 12, 3072, 512),
    "bert-large": bert(30_522, 1024, 24, 4096, 512),
}


def groups(shapes: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """Decay and no decay, as Trainer makes them: matrices, and biases and norms."""
    return [s for s in shapes if len(s) > 1], [s for s in shapes if len(s) == 1]
