"""Which pictures, crops and captions the n-th batch holds: a pure function of the seed and n.

An epoch shows every picture of every bucket once; a bucket whose count is not a multiple of the batch size is
filled from its own start again. Class pictures (prior preservation) join each batch one to one, from the same bucket.
Where several processes share a batch, each draws for all of it and keeps its own rows: numbers depend on no share.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainers.buckets import Bucket
from trainers.dataset import BucketTensors
from trainers.seeds import generator_for
from trainers.world import ALONE, World


@dataclass(frozen=True)
class Batch:
    """Rows of one shape, on the training device; latents are already drawn from the VAE's distribution."""

    latents: Float[Tensor, "b c h w"]
    mask: Float[Tensor, "b 1 h w"] | None
    time_ids: Float[Tensor, "b 6"]
    captions: Int[Tensor, " b"]
    is_prior: Bool[Tensor, " b"]

    def subject_only(self) -> Batch:
        """Without the class pictures."""
        keep = ~self.is_prior
        mask = None if self.mask is None else self.mask[keep]
        return Batch(self.latents[keep], mask, self.time_ids[keep], self.captions[keep], self.is_prior[keep])


@dataclass(frozen=True)
class _Bucket:
    tensors: BucketTensors
    subject: tuple[int, ...]
    once: tuple[int, ...]
    """Of the subject's rows one a picture."""
    prior: tuple[int, ...]


class BatchPlan:
    """Batches by number over GPU-resident buckets; `repeats` shows the subject's pictures several times an epoch.

    Args:
        batch_size: the subject's pictures in a batch of all processes together.
        world: the processes that share each batch.
    """

    def __init__(
        self, buckets: Mapping[Bucket, BucketTensors], batch_size: int, seed: int, world: World = ALONE
    ) -> None:
        self.batch_size, self.world = batch_size, world
        self._plan(seed, [self._split(tensors) for _, tensors in sorted(buckets.items(), key=_size_of)])

    def _plan(self, seed: int, buckets: list[_Bucket]) -> None:
        self.seed, self._buckets = seed, buckets
        chunks = [-(-len(bucket.subject) // self.batch_size) for bucket in buckets]
        self.batches_per_epoch = sum(chunks)
        self._slots = [(b, chunk) for b, count in enumerate(chunks) for chunk in range(count)]
        self._epochs: dict[int, _Epoch] = {}

    def for_validation(self, seed: int) -> BatchPlan:
        """Each of the subject's pictures once an epoch, in an order, crops and latents of its own."""
        other = copy(self)
        other._plan(seed, [replace(bucket, subject=bucket.once) for bucket in self._buckets])
        return other

    @staticmethod
    def _split(tensors: BucketTensors) -> _Bucket:
        prior = tensors.is_prior.tolist()
        again = [False] * len(prior) if tensors.is_repeat is None else tensors.is_repeat.tolist()
        subject = tuple(row for row, flag in enumerate(prior) if not flag)
        once = tuple(row for row in subject if not again[row])
        return _Bucket(tensors, subject, once, tuple(row for row, flag in enumerate(prior) if flag))

    def rows(self, number: int) -> tuple[int, list[int]]:
        """Bucket index and row numbers of batch `number` (subject rows, then as many class rows if there are any)."""
        epoch_number, slot = divmod(number, self.batches_per_epoch)
        epoch = self._epoch(epoch_number)
        index, chunk = self._slots[epoch.slots[slot]]
        bucket, order = self._buckets[index], epoch.orders[index]
        start = chunk * self.batch_size
        rows = [bucket.subject[order[(start + i) % len(order)]] for i in range(self.batch_size)]
        if bucket.prior:
            first = number * self.batch_size
            rows += [bucket.prior[(first + i) % len(bucket.prior)] for i in range(self.batch_size)]
        return index, rows

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            generator = generator_for("cpu", self.seed, "epoch", number)
            orders = [torch.randperm(len(b.subject), generator=generator).tolist() for b in self._buckets]
            slots = torch.randperm(len(self._slots), generator=generator).tolist()
            self._epochs = {number: _Epoch(orders, slots)}
        return self._epochs[number]

    def own(self, rows: Tensor, dim: int = 0) -> Tensor:
        """This process's part of a whole batch: its share of the subject's rows, and of the class's."""
        if self.world.size == 1:
            return rows
        each = self.batch_size // self.world.size
        return (
            rows.unflatten(dim, (-1, self.batch_size))
            .narrow(dim + 1, self.world.rank * each, each)
            .flatten(dim, dim + 1)
        )

    def whole(self, own: Tensor) -> Tensor:
        """A tensor of the whole batch's shape, to draw for; what it holds means nothing."""
        return own if self.world.size == 1 else own.new_empty((len(own) * self.world.size, *own.shape[1:]))

    def choose(self, number: int) -> tuple[int, Int[Tensor, "3 b"]]:
        """Bucket of batch `number`, and on the CPU a row, a crop and a caption for each of this process's pictures."""
        index, rows = self.rows(number)
        tensors = self._buckets[index].tensors
        choice = generator_for("cpu", self.seed, "variant", number)
        crops = torch.randint(tensors.mean.shape[1], (len(rows),), generator=choice)
        texts = torch.randint(tensors.captions.shape[1], (len(rows),), generator=choice)
        return index, self.own(torch.stack([torch.tensor(rows), crops, texts]), dim=1)

    def gather(self, bucket: int, chosen: Int[Tensor, "3 b"], draws: torch.Generator) -> Batch:
        """The pictures chosen, each a sample from `draws` of the VAE's distribution; no work on the host."""
        tensors = self._buckets[bucket].tensors
        row, crops, texts = chosen
        mean, std = tensors.mean[row, crops], tensors.std[row, crops]
        whole = torch.randn(self.whole(mean).shape, generator=draws, device=mean.device, dtype=mean.dtype)
        return Batch(
            latents=mean + std * self.own(whole),
            mask=None if tensors.mask is None else tensors.mask[row, crops],
            time_ids=tensors.time_ids[row, crops],
            captions=tensors.captions[row, texts],
            is_prior=tensors.is_prior[row],
        )

    def batch(self, number: int) -> Batch:
        """Batch `number`: a crop, a caption and a sample of the VAE's latent for each row. No host waits."""
        bucket, chosen = self.choose(number)
        device = self._buckets[bucket].tensors.mean.device
        pinned = chosen.pin_memory() if device.type == "cuda" else chosen
        draws = generator_for(device, self.seed, "latent", number)
        return self.gather(bucket, pinned.to(device, non_blocking=True), draws)


@dataclass(frozen=True)
class _Epoch:
    orders: list[list[int]]
    slots: list[int]


def _size_of(entry: tuple[Bucket, BucketTensors]) -> tuple[int, int]:
    return entry[0].width, entry[0].height
