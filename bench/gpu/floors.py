"""How fast could it be at best?

Pure: bytes that a decode step cannot avoid to read, floating-point operations that a prompt cannot avoid to take. Over
the rates that were measured on the same GPU (`bench.gpu.limits`) they give the times that nothing beats.
"""

from bench.gpu.shapes import Shape


def matrix_parameters(shape: Shape) -> int:
    """Of all layers: q, k, v, o, gate, up and down. Without the embedding and the head."""
    attention = 2 * shape.hidden * shape.heads * shape.head_dim + 2 * shape.hidden * shape.kv_heads * shape.head_dim
    return shape.layers * (attention + 3 * shape.hidden * shape.ffn)


def weight_bytes(shape: Shape) -> int:
    """What one step reads of the weights: every layer, the norms and the head. Of the embedding it reads one row per
    token, which is nothing."""
    norms = (2 * shape.layers + 1) * shape.hidden
    return (matrix_parameters(shape) + norms + shape.hidden * shape.vocab) * shape.dtype_bytes


def decode_bytes(shape: Shape, rows: int, context: int) -> int:
    """What one decode step of `rows` sequences has to read: weights once, and the keys and values of `context` tokens
    of each sequence. What it writes is one token per sequence."""
    return weight_bytes(shape) + rows * context * shape.kv_token_bytes


def prefill_flops(shape: Shape, tokens: int) -> int:
    """Of one prompt: a multiplication and an addition count two.

    Matrices take 2 operations per parameter and token; the head, 2 * hidden * vocab for the one token that is sampled.
    Attention: each query multiplies with each key that it sees, and so its weights with the values, 2 * head_dim
    operations each, in every head; n queries see n * (n + 1) / 2 keys together. So per layer
    2 * heads * head_dim * n * (n + 1).
    """
    matrices = 2 * matrix_parameters(shape) * tokens + 2 * shape.hidden * shape.vocab
    attention = shape.layers * 2 * shape.heads * shape.head_dim * tokens * (tokens + 1)
    return matrices + attention


def copied_bytes(nbytes: int) -> int:
    """What a copy of so many bytes moves through the memory: it reads and writes each."""
    return 2 * nbytes
