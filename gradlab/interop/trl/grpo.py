"""Attach the probe to TRL's `GRPOTrainer`: a dataset column says the role of every row.

    from gradlab.interop.trl.grpo import watch
    trainer = GRPOTrainer(model, rewards, args, train_dataset=dataset)   # dataset has a "role"
    watch(trainer, role_column="role", record="runs/trl/run.zarr")
    trainer.train()

The agents travel as tensors in the batch that TRL generates, so they are shuffled and split with
the rows. The trainer's methods are wrapped on the instance; nothing of TRL is replaced.

Legend: n rows of a batch, T response tokens.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import accelerate
import numpy as np
import peft
import torch
import transformers
import trl
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from gradlab.interop.trl.columns import Columns
from gradlab.interop.trl.evaluations import Graded, HeldOut
from gradlab.interop.trl.turns import ROW, step_record
from gradlab.ledger import Turns
from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, PolicyMeta, RunMeta, StepRecord
from gradlab.signature import token_counts
from gradlab.store.writer import RunStore

WRAPPED = (
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_compute_loss",
    "_get_per_token_logps_and_entropies",
)
"""Methods of the trainer that are wrapped; present since TRL 1.0."""

AGENT, PROMPT, FACTS = "gradlab_agent", "gradlab_prompt", "gradlab_facts"
"""Keys of the tensors that travel with the rows: agent index, prompt id, and what was known when
the row was generated."""
KEPT = (
    "reward", "outcome", "zero_variance", "truncated", "all_right", "all_wrong", "group_size",
)  # fmt: skip
"""Columns of FACTS, fields of `gradlab.interop.trl.turns.ROW`: groups are those of the row."""

CORRECT_ABOVE = 0.5
PROBE_STATE = "gradlab_probe.pt"


def watch(
    trainer: GRPOTrainer,
    *,
    role_column: str = "role",
    number_column: str | None = None,
    problem_column: str | None = None,
    agents: Sequence[Agent] | None = None,
    record: str | Path | None = "run.zarr",
    correct: str | None = None,
    row_statistics: bool = True,
    policy: str = "shared",
    mode: Literal["exact", "fused"] = "exact",
    sketch_buckets: int = 0,
) -> Watch:
    """Measure every agent's exact gradient while `trainer.train()` runs; call it before that.

    `role_column`: the role of each row of the training (and evaluation) dataset, or a field that
    the trainer's `rollout_func` returns. `number_column`: which of the role's agents, 0 without
    it. `problem_column`: rows that agree in it share a prompt in the row statistics; without it
    those with the same prompt do. `agents`: read from the dataset if None. `correct`: name of the
    reward function that grades answers (above 0.5 is correct): it gives accuracies, and
    evaluations if the trainer has an `eval_dataset`. `row_statistics` form the gradient of every
    row, one module at a time; switch them off if that is too slow. `mode` and `sketch_buckets`: see
    `gradlab.probe.probe.attach`.

    One update of the optimizer is one step of the store, with the rows that it was trained on.
    """
    columns = Columns(role_column, number_column, problem_column)
    check(trainer, columns, record)
    names = trainer.reward_func_names
    if correct is not None and correct not in names:
        raise ValueError(f"watch: no reward function is called '{correct}'; there are {names}")
    if agents is None:
        agents = columns.agents_of(trainer.train_dataset)
    graded = None if correct is None else names.index(correct)
    settings = Settings(record, graded, row_statistics, policy, mode, sketch_buckets)
    watching = Watch(trainer, columns, tuple(agents), settings)
    trainer.add_callback(watching)
    return watching


def check(trainer: Any, columns: Columns, record: str | Path | None) -> None:
    """Refuse what cannot be watched, before anything is wrapped."""
    if not isinstance(trainer, GRPOTrainer):
        raise ValueError(f"watch: expected a trl.GRPOTrainer, got {type(trainer).__name__}")
    missing = [name for name in WRAPPED if not callable(getattr(trainer, name, None))]
    if missing:
        raise ValueError(
            f"watch: {type(trainer).__name__} of trl {trl.__version__} has no "
            f"{', '.join(missing)}; this works with trl 1.0 to 1.16, install trl==1.16.*"
        )
    if any(isinstance(callback, Watch) for callback in trainer.callback_handler.callbacks):
        raise ValueError("watch: this trainer is watched already")
    if trainer.args.remove_unused_columns:
        raise ValueError(
            f"watch: the trainer drops the column '{columns.role}' before it reaches the batch; "
            "set GRPOConfig(remove_unused_columns=False), TRL's default"
        )
    if trainer.is_deepspeed_enabled:
        raise ValueError("watch: DeepSpeed keeps gradients where the probe cannot read them")
    dataset: Any = trainer.train_dataset
    if isinstance(dataset, Dataset) and trainer.rollout_func is None:
        for what, column in columns.given.items():
            if column not in dataset.column_names:
                raise ValueError(
                    f"watch: the training dataset has no column '{column}', its columns are "
                    f"{dataset.column_names}; add it, or name another with {what}="
                )
    if record is not None and Path(record).suffix != ".zarr":
        raise ValueError(f"watch: record is '{record}'; expected a path that ends in .zarr")


@dataclass(frozen=True)
class Settings:
    """What `watch` was asked for."""

    record: str | Path | None
    graded: int | None
    """Index of the reward function that grades answers."""
    row_statistics: bool
    policy: str
    mode: Literal["exact", "fused"]
    sketch_buckets: int


class Watch(TrainerCallback):
    """A `GRPOTrainer` under the probe; made by `watch`."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        columns: Columns,
        agents: tuple[Agent, ...],
        settings: Settings,
    ) -> None:
        self.probe: Probe | None = None
        """There from the first step of `trainer.train()` on."""
        self.agents = agents
        self._trainer: Any = trainer  # typed loosely, and its methods are replaced
        self._columns = columns
        self._index = {agent: i for i, agent in enumerate(agents)}
        self._settings = settings
        self._record = None if settings.record is None else Path(settings.record)
        self._store: RunStore | None = None
        self._last_logps: tuple[Tensor, Tensor | None] | None = None
        self._rewards: Tensor | None = None
        self._turns: list[Turns] = []
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._loss: float | Tensor = 0.0
        self._rollout_seconds = 0.0
        self._step_start = time.perf_counter()
        self._ends = end_tokens(trainer)
        self._held_out = self._held_out_rows()
        self._answers: list[Graded] = []
        self._last_eval_step = -1
        around = (
            self._around_generation,
            self._around_rewards,
            self._around_loss,
            self._around_logps,
        )
        for name, wrap in zip(WRAPPED, around, strict=True):
            setattr(trainer, name, wrap(getattr(trainer, name)))

    # Callbacks of the trainer.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        optimizer = trainer.optimizer
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks
        self.probe = attach(
            trainer.model_wrapped,
            optimizer,
            agents=self.agents,
            policy=self._settings.policy,
            mode=self._settings.mode,
            sketch_buckets=self._settings.sketch_buckets,
        )
        if state.global_step > 0:
            self._load_probe(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            self._last_eval_step = state.global_step
        if self._record is not None and trainer.accelerator.is_main_process:
            meta = self._meta(self.probe.meta)
            self._store = (
                RunStore.resume(self._record, state.global_step, meta)
                if state.global_step > 0 and self._record.exists()
                else RunStore.create(self._record, meta)
            )
            self.probe.send_to(self._store)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.probe is not None
        self.probe.step = state.global_step + 1
        self._turns, self._counts, self._loss = [], {}, 0.0
        self._rollout_seconds, self._step_start = 0.0, time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.probe is not None
        self.probe.loss = float(self._loss)
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        self.probe.loss_scale = 1.0 if scaler is None else scaler.get_scale()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.probe is not None
        mine = np.concatenate([np.zeros(0, dtype=ROW), *self._turns])
        everybody = gather_object([(mine, self._counts)])
        if self._store is None:
            return
        counts: dict[str, NDArray[np.int64]] = {}
        for _, by_role in everybody:
            for role, count in by_role.items():
                counts[role] = counts[role] + count if role in counts else count
        seconds = time.perf_counter() - self._step_start
        turns = np.concatenate([turns for turns, _ in everybody])
        self._store.append(self._step_record(state.global_step, turns, counts, seconds))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mine, self._answers = self._answers, []
        is_known = state.global_step == self._last_eval_step
        if self._held_out is None or self.probe is None or is_known:  # the same on every rank
            return
        everybody = gather_object(mine)
        if any(answer.key not in self._held_out.problems for answer in everybody):
            return  # somebody evaluates another dataset
        self._last_eval_step = state.global_step
        if self._store is not None:
            self._store.append(self._held_out.record(state.global_step, everybody, self.agents))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.probe is not None and self._trainer.accelerator.is_main_process:
            torch.save(self.probe.state_dict(), checkpoint / PROBE_STATE)
        if self._store is not None:
            self._store.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.probe is not None:
            self.probe.detach()
        if self._store is not None:
            self._store.close()
            self._store = None

    # Around the trainer's methods.

    def _around_generation(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def generate_and_tag(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            trainer = self._trainer
            if not trainer.model.training:
                evaluated: dict[str, Any] = generate(inputs)
                self._keep_answers(inputs, evaluated)
                return evaluated
            if trainer.rollout_func is None:
                self._agent_indices(inputs)  # a bad row is told before the time for a rollout
            start = time.perf_counter()
            output: dict[str, Any] = generate(inputs)
            self._rollout_seconds += time.perf_counter() - start
            # After it: a rollout_func may have put the role into the rows.
            agents = self._agent_indices(inputs)
            if len(output["completion_ids"]) != len(agents):
                raise ValueError(
                    f"watch: {len(inputs)} rows went into the generation and "
                    f"{len(output['completion_ids'])} came out; the probe cannot tell whose"
                )
            output[AGENT] = torch.tensor(agents)
            output[PROMPT] = torch.tensor([self._columns.prompt(row) for row in inputs])
            output[FACTS] = self._facts(output)
            return output

        return generate_and_tag

    def _around_rewards(self, calculate: Callable[..., Any]) -> Callable[..., Any]:
        def calculate_and_keep(*args: Any, **kwargs: Any) -> Any:
            rewards = calculate(*args, **kwargs)
            self._rewards = rewards.detach().to("cpu", torch.float64)
            return rewards

        return calculate_and_keep

    def _around_loss(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def tag_and_compute(model: Any, inputs: dict[str, Any]) -> Tensor:
            if self.probe is None or not self._trainer.model.training:
                loss: Tensor = compute(model, inputs)
                return loss
            if AGENT not in inputs:
                raise ValueError(
                    f"watch: the batch lost its agents on the way to the loss: no {AGENT} among "
                    f"{sorted(inputs)}. Does {type(self._trainer).__name__} make its own batches?"
                )
            if self._settings.row_statistics:
                advantages = by_row(inputs["advantages"])
                self.probe.tag(inputs[AGENT], prompts=inputs[PROMPT], advantages=advantages)
            else:
                self.probe.tag(inputs[AGENT])
            try:
                loss = compute(model, inputs)
            finally:
                self.probe.untag()
            self._loss += loss.detach()
            self._keep_turns(inputs)
            return loss

        return tag_and_compute

    def _around_logps(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def compute_and_keep(*args: Any, **kwargs: Any) -> Any:
            result = compute(*args, **kwargs)
            if torch.is_grad_enabled():
                entropies = None if result[1] is None else result[1].detach()
                self._last_logps = result[0].detach(), entropies
            return result

        return compute_and_keep

    # What the rows were like.

    def _agent_indices(self, rows: Iterable[Mapping[str, Any]]) -> list[int]:
        agents = [self._columns.agent(row) for row in rows]
        unknown = sorted({str(agent) for agent in agents if agent not in self._index})
        if unknown:
            raise ValueError(
                f"watch: the dataset holds rows of {', '.join(unknown)}, the probe was attached "
                f"with agents {[*map(str, self.agents)]}; pass agents= with all of them"
            )
        return [self._index[agent] for agent in agents]

    def _keep_answers(self, rows: list[dict[str, Any]], output: Mapping[str, Any]) -> None:
        if self._held_out is None:
            return
        lengths = output["completion_mask"].sum(1).tolist()
        for row, fact, length in zip(rows, self._facts(output).tolist(), lengths, strict=True):
            key, role = self._columns.key(row), str(row.get(self._columns.role))
            self._answers.append(Graded(key, role, fact[1], length, fact[3] > 0))

    def _facts(self, output: Mapping[str, Any]) -> Tensor:
        """[n, 7] of this process's rows: `KEPT`."""
        trainer = self._trainer
        ids, mask = output["completion_ids"].cpu(), output["completion_mask"].cpu()
        n = len(ids)
        facts = torch.full((n, len(KEPT)), math.nan, dtype=torch.float64)
        length = mask.sum(1)
        last = ids.gather(1, (length - 1).clamp(min=0)[:, None].long())[:, 0]
        facts[:, 3] = (~torch.isin(last, self._ends) | (length == 0)).double()
        if self._rewards is None:
            return facts
        weights = trainer.reward_weights.to("cpu", torch.float64)
        total = (self._rewards * weights).nansum(1)
        total[self._rewards.isnan().all(1)] = math.nan
        size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        here = slice(trainer.accelerator.process_index * n, None)
        facts[:, 0] = total[here][:n]
        if self._settings.graded is not None:
            grade = self._rewards[:, self._settings.graded]
            known = torch.where(grade.isnan(), math.nan, (grade > CORRECT_ABOVE).double())
            facts[:, 1] = known[here][:n]
        else:
            known = torch.full_like(total, math.nan)
        if len(total) % size == 0:
            facts[:, 6] = size
            groups = total.view(-1, size)
            same = torch.isclose(groups, groups[:, :1], equal_nan=True).all(1)
            graded = known.view(-1, size)
            is_graded = ~graded.isnan().any(1)
            for column, flat in (
                (2, same.double()),
                (4, torch.where(is_graded, (same & (graded == 1).all(1)).double(), math.nan)),
                (5, torch.where(is_graded, (same & (graded == 0).all(1)).double(), math.nan)),
            ):
                facts[:, column] = flat.repeat_interleave(size)[here][:n]
        self._rewards = None
        return facts

    @torch.no_grad()
    def _keep_turns(self, inputs: Mapping[str, Any]) -> None:
        """Keep what the rows of a micro-batch were like, for the step record."""
        mask_nT = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask_nT = mask_nT * inputs["tool_mask"]
        columns = {"prompt_tokens": inputs["prompt_mask"].sum(1), "tokens": mask_nT.sum(1)}
        columns |= self._token_sums(inputs, mask_nT)
        columns["advantage"] = by_row(inputs["advantages"])
        names = [*columns]
        on_host = torch.stack([columns[name].double() for name in names]).cpu().numpy()
        turns = np.full(len(mask_nT), np.nan, dtype=ROW)
        for name, values in zip(names, on_host, strict=True):
            turns[name] = values
        turns["agent"] = inputs[AGENT].numpy()
        for i, name in enumerate(KEPT):
            turns[name] = inputs[FACTS][:, i].numpy()
        turns["weight"] = self._weights(turns["tokens"])
        self._turns.append(turns)
        ids, is_token = inputs["completion_ids"].cpu().numpy(), mask_nT.bool().cpu().numpy()
        for index in np.unique(turns["agent"]).astype(int):
            is_mine = turns["agent"] == index
            role = self.agents[index].role
            count = token_counts(ids[is_mine][is_token[is_mine]])
            self._counts[role] = self._counts[role] + count if role in self._counts else count

    def _token_sums(self, inputs: Mapping[str, Any], mask_nT: Tensor) -> dict[str, Tensor]:
        """Sums over each row's response tokens, of what TRL computed for its loss."""
        if self._last_logps is None:
            return {}
        logps, entropies = self._last_logps
        self._last_logps = None
        trainer, advantages = self._trainer, inputs["advantages"]
        advantages = advantages if advantages.dim() == 2 else advantages[:, None]
        old = inputs.get("old_per_token_logps")
        ratio = torch.ones_like(logps) if old is None else (logps - old).exp()
        is_clipped = (ratio < 1 - trainer.epsilon_low) & (advantages < 0)
        is_clipped |= (ratio > 1 + trainer.epsilon_high) & (advantages > 0)
        values = {
            "logprob": logps,
            "ratio": ratio,
            "ratio_squared": ratio**2,
            "clipped": is_clipped,
        }
        if entropies is not None:
            values["entropy"] = entropies
        if "ref_per_token_logps" in inputs:
            gap = inputs["ref_per_token_logps"] - logps
            values["kl"] = gap.exp() - gap - 1
        return {
            name: torch.where(mask_nT.bool(), value.double(), 0.0).sum(1)
            for name, value in values.items()
        }

    def _weights(self, tokens_n: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each row's tokens weigh in the loss, up to a factor that an update's rows share."""
        loss_type = self._trainer.loss_type
        if loss_type in ("grpo", "sapo"):
            return (tokens_n > 0).astype(np.float64)
        if loss_type == "bnpo":
            return tokens_n / max(float(tokens_n.sum()), 1.0)
        return tokens_n

    # Records.

    def _step_record(
        self,
        step: int,
        turns: Turns,
        counts: Mapping[str, NDArray[np.int64]],
        seconds: float,
    ) -> StepRecord:
        return step_record(
            step,
            time.time(),
            self.agents,
            turns,
            counts,
            {
                "rollout_seconds": self._rollout_seconds,
                "train_seconds": seconds - self._rollout_seconds,
                "step_seconds": seconds,
            },
        )

    def _held_out_rows(self) -> HeldOut | None:
        """What evaluations are recorded on; None if they are not."""
        dataset = self._trainer.eval_dataset
        if self._settings.graded is None or dataset is None:
            return None
        if not isinstance(dataset, Dataset):
            warnings.warn(
                f"watch: evaluations are recorded for one indexed eval_dataset, not for a "
                f"{type(dataset).__name__}; the store will have none",
                stacklevel=3,
            )
            return None
        unknown = {self._columns.agent(row).role for row in dataset}
        unknown -= {agent.role for agent in self.agents}
        if unknown:
            raise ValueError(
                f"watch: the eval_dataset holds rows of {sorted(unknown)}, the agents are "
                f"{[*map(str, self.agents)]}; pass agents= with all of them"
            )
        keys = [self._columns.key(row) for row in dataset]
        return HeldOut(keys, self._trainer.num_generations_eval)

    def _meta(self, policy: PolicyMeta) -> RunMeta:
        trainer, roles = self._trainer, tuple(dict.fromkeys(a.role for a in self.agents))
        path = self._record
        assert path is not None
        packages, held_out = (torch, transformers, peft, accelerate, trl), self._held_out
        return RunMeta(
            run_id=path.resolve().parent.name if path.stem == "run" else path.stem,
            workflow="trl",
            task=type(trainer).__name__,
            model=str(trainer.model.config._name_or_path),
            roles=roles,
            routing=dict.fromkeys(roles, self._settings.policy),
            policies=(policy,),
            problems=() if held_out is None else held_out.names,
            eval_samples=1 if held_out is None else held_out.num_samples,
            config={key: plain(value) for key, value in trainer.args.to_dict().items()},
            versions={package.__name__: package.__version__ for package in packages},
        )

    def _load_probe(self, checkpoint: Path) -> None:
        path = checkpoint / PROBE_STATE
        assert self.probe is not None
        if path.exists():
            self.probe.load_state_dict(torch.load(path, weights_only=True))
        else:
            warnings.warn(
                f"watch: {path} does not exist, so the momentum from before belongs to no agent "
                "and update shares are approximate until it has faded",
                stacklevel=2,
            )


def by_row(advantages: Tensor) -> Tensor:
    """[n] advantages, of which some losses keep one per token."""
    return advantages if advantages.dim() == 1 else advantages.mean(1)


def end_tokens(trainer: Any) -> Tensor:
    """Tokens that a finished response ends with."""
    tokenizer = trainer.processing_class
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    ends |= set(getattr(trainer, "eos_token_ids", ()))  # older versions of TRL have one only
    return torch.tensor([end for end in ends if end is not None])


def plain(value: Any) -> Any:
    """A configuration value as JSON keeps it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)
