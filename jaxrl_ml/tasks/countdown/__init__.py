"""Countdown: reach a target from a few numbers with + - * /, each number used exactly once.

`Countdown` generates problems by index, `Balanced` equally many for every pattern of expression; `from_files` reads them and
`write_jsonl` writes them; `tinyzero`, `chat` and `compact` turn one into a prompt. The reward is
`jaxrl_ml.rewards.countdown.countdown_reward`. Every problem has the fields `numbers` (tuple of int, in the order shown) and
`target` (int), and, where it is known, `solution` (str), one expression that reaches it.
"""

from jaxrl_ml.tasks.countdown.balanced import Balanced
from jaxrl_ml.tasks.countdown.files import from_files, write_jsonl
from jaxrl_ml.tasks.countdown.generate import Countdown
from jaxrl_ml.tasks.countdown.prompts import chat, compact, tinyzero

__all__ = ["Balanced", "Countdown", "chat", "compact", "from_files", "tinyzero", "write_jsonl"]
