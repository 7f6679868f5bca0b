"""Credit for a row's two actions, its language l and its thinking y in it, apart (loss.language=own). Numpy, float64 inside.

In: rewards [B] and languages [B], rows of a group adjacent. Out: the thinking's advantages [B], and what each language is worth
to each prompt [Q, languages + 1]. With r the rewards, b the part of r that the choice of the language alone earns
(`Scores.language_rewards`), c = r − b, and bars for means,

    ∇E[r] = E[∇log π(l)·(Q(l) − V)] + E[∇log π(y|l)·(c − baseline)],    Q(l) = E[r|l],  V = Σ_l π(l)·Q(l),

since y does not change b, and a score has mean zero against any baseline that y does not enter. (Where y does change b, as by
breaking a promise of compliance, that lesson is left out on purpose.) Hence, against one advantage for all of a row (`shared`):

(i)   Thinking: c_i less a baseline of the other rows of its group, those of its own language first:
      (n·c̄_same + κ·c̄_others) / (n + κ), with n others of its language. So the group's baseline where it is alone, the
      language's as n grows. Given the languages, y_i is in no baseline of its own: no bias, whatever κ. What a language is
      worth is mere noise to the thinking: with variance τ² between languages and σ² within, the best κ is about σ²/τ². κ = 0,
      the plain mean of the own language, has an error of σ²/n: with 0/1 rewards in small groups worse than no distinction.
(ii)  Tag, sampled (mode free): Σ_i Â(q, l_i)·∇log π(l_i), averaged over rows, apart from the thinking's tokens. To replace the
      row's reward by its language's mean would change nothing: Σ_i (r_i − r̄)·∇log π(l_i) = Σ_l n_l·(r̄_l − r̄)·∇log π(l). So
      Â pools over the step: with a_i the row's advantage (`group_advantages` of r), n_ql rows of language l in group q and
      ā_l their mean over the step, Â(q, l) = (Σ_{i in ql} a_i + κ·ā_l) / (n_ql + κ). κ = 0 is the identity above: no bias
      that the row's advantages do not have. κ > 0 trades variance for a bias, by κ/(n_ql + κ), towards what the language is
      worth to the step's other prompts. Advantages are pooled, not rewards: those hold how hard the prompts were that chose l,
      and on a hard prompt would praise whatever was not tried.
(iii) Tag, all actions (mode constrained): Σ_l π(l)·∇log π(l)·Â(q, l), the mean of (ii) over the draw of the languages, Â given:
      no variance from which were drawn. It is exact under the policy of the update, so it has no ratio, no clipping and no
      importance weight. Bias: κ's; a language that the group did not draw has Â = ā_l, one that the step did not draw 0, no
      preference. With κ = 0 both have 0, which slows a rare language by its chance to be drawn, 1 − (1 − π(l))^G.
(iv)  b is in r, so in Â, and not in c: in a group that is all wrong, a bonus moves tag tokens only. They are normalised apart:
      the thinking by the spread of c alone, the tag by that of r. So a bonus keeps its weight against correctness in the tag's
      term, which a division by its own standard deviation would lose.

In mode free, not to write a tag is a choice as well, with a column of its own. Tokens drawn at a node of the trie are the tag's
(`tag_mask`), with their KL, entropy, ratio and importance weight; all others are the thinking's. With loss.advantage=grpo each
of the two is scaled by its own spread in the group, with rloo neither; see `thinking_advantages`. "The step" is this process's
part of it. Variances, speed and the defaults of κ and of the tag's weight: `tools/language_credit.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxrl_ml.advantages import STD_EPSILON

if TYPE_CHECKING:
    from jaxrl_ml.types import Array, Tags


def tag_mask(tags: Tags, width: int) -> Array:
    """Which of the first `width` tokens were drawn at a node of the trie, bool [B, width]; numpy and jax arrays alike."""
    return (tags.state > 0).sum(1)[:, None] > np.arange(width)[None]


def thinking_advantages(
    rewards: np.ndarray, language: np.ndarray, group_size: int, kind: Literal["grpo", "dr_grpo", "rloo"], shrinkage: float
) -> np.ndarray:
    """Advantages f32 [B] of rewards [B] (without those of the language) within groups of G rows, languages int [B] told apart.

    - rloo: reward − the baseline of (i), with κ = `shrinkage`.
    - dr_grpo: the same times (G − 1)/G.
    - grpo: dr_grpo's, over their root mean square in the group + 1e-4.

    In a group of one language each is what `group_advantages` gives.
    """
    G = group_size
    grouped = np.asarray(rewards, np.float64).reshape(-1, G)
    languages = np.asarray(language).reshape(-1, G)
    same = (languages[:, :, None] == languages[:, None, :]) & ~np.eye(G, dtype=bool)[None]
    count = same.sum(2)
    centred = grouped - grouped.mean(1, keepdims=True)  # first, so that large equal rewards leave no rounding
    of_group = -centred / (G - 1)  # the mean of the others
    pseudo = np.where(count + shrinkage > 0, shrinkage, 1.0)
    baseline = ((same * centred[:, None]).sum(2) + pseudo * of_group) / (count + pseudo)
    advantages = centred - baseline
    if kind != "rloo":
        advantages = advantages * ((G - 1) / G)
    if kind == "grpo":
        advantages = advantages / (np.sqrt((advantages**2).mean(1, keepdims=True)) + STD_EPSILON)
    return advantages.reshape(-1).astype(np.float32)


def language_values(
    advantages: np.ndarray, language: np.ndarray, num_languages: int, group_size: int, shrinkage: float
) -> np.ndarray:
    """Â(q, l) of (ii): what each language is worth to each prompt, f32 [Q, languages + 1], the last column that of no tag.

    advantages [B]: the rows', of all their rewards; language int [B], −1 for no tag; shrinkage: κ.
    """
    chosen = np.asarray(language)[:, None] == np.append(np.arange(num_languages), -1)[None]
    sums = np.where(chosen, np.asarray(advantages, np.float64)[:, None], 0.0)
    of_step = sums.sum(0) / np.maximum(chosen.sum(0), 1)
    in_group = sums.reshape(-1, group_size, num_languages + 1).sum(1)
    count = chosen.reshape(-1, group_size, num_languages + 1).sum(1) + shrinkage
    return ((in_group + shrinkage * of_step[None]) / np.where(count > 0, count, 1.0)).astype(np.float32)
