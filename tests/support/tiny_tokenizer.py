"""What is a real tokenizer that a test can train in milliseconds?"""

from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "the prefill worker computes the cache and the decode worker streams the tokens back to the client",
    "Grüße aus Köln, naïve café, 東京は日本の首都です, привет мир, 😀😀🚀 and 👩‍👩‍👧 too",
    "def main():\n    return {'role': 'user', 'content': \"hello\"}\n",
)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return str(tokenizer.to_str())


def byte_level() -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it: any bytes can come out of it; `encode` prepends `<s>`."""
    return Tokenizer.from_str(_trained())


def byte_fallback() -> Tokenizer:
    """SentencePiece's form as Llama 2 has it: `▁` for spaces, others as `<0xE2>`, the first space dropped."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abehlorw", "▁w", "lo"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[("▁", "w"), ("l", "o")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def save_model(directory: Path, chat_template: str | None) -> PreTrainedTokenizerFast:
    """Write the tokenizer files of a model with `byte_level` into `directory`, as transformers does."""
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    return tokenizer
