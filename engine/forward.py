"""What stands between an engine and the arithmetic of its device?

`ModelForward`: rows in, logits out. `engine.core.TorchEngine` samples from what it gives, and `engine.support.verify`
compares it with the model's own forward, so what is checked at load is what serves. Two implementations:
`GatheredForward` on a CPU, `engine.cuda.forward.CudaForward` on CUDA. Runs on the engine thread, in inference mode.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from engine import attention
from engine.batch import BatchBuilder, Window
from engine.pool import KvPool
from engine.port import Row


class ModelForward(Protocol):
    def logits(self, rows: Sequence[Row], chosen: Tensor | None = None) -> Tensor:
        """One step: clears the pages that `rows` begin, and writes their keys and values.

        Args:
            chosen: int64 [samples], on the device, what was chosen after the step before; rows that follow are fed
                from it.

        Returns:
            [samples, vocab], of the rows that sample, in their order; good until the next call.

        Raises:
            ValueError: a row does not fit its pages, a mistake of the caller.
            engine.attention.UnsupportedAttention: the model's attention is not one that is computed here.
        """
        ...


ForwardFactory = Callable[[KvPool], ModelForward]


def feed_back(input_ids: Tensor, followers: Tensor, followed: Tensor, chosen: Tensor | None) -> None:
    """Write into `input_ids` the tokens that only the device knows; the host waits for none of them.

    Args:
        input_ids: int64 [tokens] of a step, changed in place.
        followers, followed: int64 [n], which of them are which of `chosen`.

    Raises:
        ValueError: a row follows, and there was no step: a mistake of the caller.
    """
    if not followers.shape[0]:
        return
    if chosen is None:
        raise ValueError("a row follows a step that there was not")
    input_ids.index_copy_(0, followers, chosen.index_select(0, followed))


class GatheredForward:
    """transformers' forward with attention over gathered copies of pages (`engine.attention.paged_attention`)."""

    def __init__(self, model: PreTrainedModel, windows: Sequence[Window], pool: KvPool) -> None:
        """`windows` has one entry per layer."""
        attention.install(model, attention.NAME, attention.paged_attention)
        self._model = model
        self._pool = pool
        self._layers = attention.paged_layers(pool, windows)
        self._batches = BatchBuilder(pool.layout, frozenset(windows), model.device)

    def logits(self, rows: Sequence[Row], chosen: Tensor | None = None) -> Tensor:
        batch = self._batches.build(rows)
        feed_back(batch.input_ids[0], batch.followers, batch.followed, chosen)
        self._pool.clear(batch.fresh_pages)
        planes = self._layers[0].cache.key_planes
        scratch = planes.new_empty((2, batch.gather_planes, planes.shape[1]))
        step = attention.PagedStep(batch, self._layers, scratch)
        return attention.logits(self._model, batch.input_ids, batch.position_ids, batch.sampled, step)
