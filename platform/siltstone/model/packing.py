"""Sequences of different lengths, one behind the other: what only fills rows up would cost as much as what is read.

Shapes: S sequences, W tokens of the longest, N tokens of all together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Packing:
    """Where the tokens of sequences lie, packed in one row and spread out into a row each."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.num_rows, self.width = len(self.lengths), max(self.lengths)
        num_S = torch.tensor(self.lengths)
        row_N = torch.repeat_interleave(torch.arange(self.num_rows), num_S)
        column_N = torch.arange(len(row_N)) - (num_S.cumsum(0) - num_S)[row_N]
        self.row_N, self.column_N = row_N.to(device), column_N.to(device)

    def spread(self, packed_1HNC: Tensor) -> Tensor:
        """Returns the tokens a sequence a row, zero behind its end: [S, H, W, C]."""
        _, heads, _, channels = packed_1HNC.shape
        rows = packed_1HNC.new_zeros(self.num_rows, self.width, heads, channels)
        return rows.index_put((self.row_N, self.column_N), packed_1HNC[0].transpose(0, 1)).transpose(1, 2)

    def gather(self, spread_SHWC: Tensor) -> Tensor:
        """Returns the tokens packed again: [1, H, N, C]."""
        return spread_SHWC.transpose(1, 2)[self.row_N, self.column_N].transpose(0, 1)[None]
