"""A stage of supervised fine-tuning: one step, from packed demonstrations to the update.

In: a `TrainState` and the number of the step. Out: the next `TrainState` and a `StepReport`.
"""

from __future__ import annotations

from jaxrl_ml import data
from jaxrl_ml.config import Config, SFTStage
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.programs import Programs
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import StepReport, TrainState, UserError


class SFT:
    """One SFT stage of a run."""

    def __init__(self, config: Config, stage: SFTStage, programs: Programs, tokenizer: Tokenizer) -> None:
        self.layout = programs.layout
        rows = stage.batch_size // stage.num_microbatches
        if rows % self.layout.row_shards:
            raise UserError(
                f"{stage.name}: batch_size / num_microbatches = {rows} cannot be split over {self.layout.row_shards} row "
                f"shards (mesh data·fsdp); make it a multiple of {self.layout.row_shards}"
            )
        self.layout.check_length(f"{stage.name}.sequence_length", stage.sequence_length)
        self.optimizer = make_optimizer(config.optimizer_of(stage), stage.num_steps)
        self.batches = data.packed_batches(
            stage.task,
            data.PromptRenderer(tokenizer, config.prompt_format, config.system_prompt),
            batch_size=stage.batch_size,
            sequence_length=stage.sequence_length,
            seed=config.data_seed(stage),
        )
        self._fit = programs.fit(stage, self.optimizer)

    def step(self, state: TrainState, step: int) -> tuple[TrainState, StepReport]:
        """One step of the stage; `step` is not needed: supervised fine-tuning draws no noise."""
        packed = next(self.batches)
        state, metrics = self._fit(state, self.layout.put_rows(self.layout.own_rows(packed)))
        tokens = {"sft/tokens": float((packed.segments > 0).sum()), "sft/loss_tokens": float(packed.loss_mask.sum())}
        return state, StepReport(tokens, [metrics])

    def close(self) -> None:
        self.batches.close()
