"""How does the vocabulary of a GGUF file become a Hugging Face tokenizer?

Called by `launch.gguf_convert`. Only what SmolLM2 has: byte-level BPE as in GPT-2, after every digit was split off as a
token of its own. llama.cpp calls that pre-tokenizer `smollm`: the pattern `\\p{N}` first, then GPT-2's.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as InOrder

_CONTROL = 3  # token types of the GGUF specification, `tokenizer.ggml.token_type`
_USER_DEFINED = 4


def build_tokenizer(tokens: Sequence[str], token_types: Sequence[int], merges: Sequence[str]) -> Tokenizer:
    """
    Args:
        tokens: spelling of each token in GPT-2's printable bytes; its place is its id.
        token_types: GGUF token type of each token; control tokens become special tokens.
        merges: BPE merges, `left right`, best first.
    """
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = InOrder([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, token_types, strict=True)
            if kind in {_CONTROL, _USER_DEFINED}
        ]
    )
    return tokenizer
