"""Group baselines: what a row's reward is compared with. Pure numpy, float64 inside.

In: rewards [B], rows of a group adjacent. Out: advantages [B]; and which groups the loss reads.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

STD_EPSILON = 1e-4
_ROUNDING = 1e-7  # advantages of equal rewards are not always exactly zero


def group_advantages(rewards: np.ndarray, group_size: int, kind: Literal["grpo", "dr_grpo", "rloo"]) -> np.ndarray:
    """Advantages f32 [B] of rewards [B] within their groups of G rows.

    - grpo: (r − mean) / (std + 1e-4), std with ddof=0 (DeepSeekMath, arXiv 2402.03300, §4.1.2; the paper leaves ddof and the
      epsilon open).
    - dr_grpo: r − mean (Dr. GRPO, arXiv 2503.20783, eq. 4).
    - rloo: r − mean of the other rows = G/(G−1) · (r − mean) (Ahmadian et al., arXiv 2402.14740).
    """
    grouped = np.asarray(rewards, np.float64).reshape(-1, group_size)
    centred = grouped - grouped.mean(1, keepdims=True)
    match kind:
        case "grpo":
            centred = centred / (grouped.std(1, keepdims=True) + STD_EPSILON)
        case "rloo":
            centred = centred * (group_size / (group_size - 1))
    return centred.reshape(-1).astype(np.float32)


def mixed_groups(correct: np.ndarray, group_size: int) -> np.ndarray:
    """Whether the raw correctness varies within each group: bool [Q] of correct bool [B].

    Raw, never shaped: a bonus in an all-wrong group is not a reason to learn from it.
    """
    grouped = np.asarray(correct, bool).reshape(-1, group_size)
    return grouped.any(1) & ~grouped.all(1)


def learning_rows(advantages: np.ndarray, loss_mask: np.ndarray, language_values: np.ndarray | None = None) -> np.ndarray:
    """Whether the rewards teach a row anything, bool [B]: some token that the loss reads has an advantage other than zero.

    advantages, loss_mask: [B, C]. language_values: [Q, languages] of the rows' prompts, from which the rows' tags learn; a row
    also counts where one of those is not zero.
    """
    rows = ((np.abs(advantages) > _ROUNDING) & loss_mask).any(1)
    if language_values is None:
        return rows
    of_prompts = (np.abs(language_values) > _ROUNDING).any(1)
    return rows | (np.repeat(of_prompts, len(rows) // len(of_prompts)) & loss_mask.any(1))


def overlong_penalty(lengths: np.ndarray, limit: int, zone: int) -> np.ndarray:
    """Soft length penalty f32 [B] in [−1, 0] of lengths [B] tokens: linear over the last `zone` tokens before `limit`.

    DAPO (arXiv 2503.14476) eq. 13, with the limit as the longest possible completion.
    """
    return -np.clip((np.asarray(lengths, np.float32) - (limit - zone)) / zone, 0.0, 1.0)
