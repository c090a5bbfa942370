"""The training loop that every stage shares.

A stage brings a model, an objective and optimizers; the loop does gradient steps, the moving
average of the weights, the schedule, metrics, checkpoints and a clean stop.

An objective draws everything random from `step_generator(seed, step, rank)`: a step's batch is a
function of its number. So a resumed run repeats nothing and skips nothing, and its next loss is
the one an uninterrupted run would have had.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import FrameType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ..errors import CheckpointError
from ..files import atomic_write
from .distributed import SINGLE, Group
from .optim import Schedule

logger = logging.getLogger(__name__)

Objective = Callable[[int], Mapping[str, Tensor]]
"""Step number -> named scalars; "loss" is differentiated, the others are reported."""


@dataclass(frozen=True)
class LoopSettings:
    """How a stage is run, whatever it trains."""

    schedule: Schedule
    """Learning rate over the steps; its num_steps is where training ends."""
    ema_decay: float = 0.998
    """Of the moving average of the weights."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all parameters together."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps that one line of metrics averages."""


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Return the source of everything random in one step of one process."""
    mixed = (seed * 1_000_003 + step) * 1_009 + rank
    return torch.Generator().manual_seed(mixed % 2**63)


class Loop:
    """One training run in a run directory; resumes by itself from the checkpoint it finds there.

    Args:
        model: Everything that is trained, as one module; its parameter names name the checkpoint.
        objective: Gives the losses of this process's share of a step.
        optimizers: Over the model's parameters.
        settings: Schedule and intervals.
        run_dir: Where checkpoint and metrics go.
        group: Processes that train together, each with its own rows of the batch.
        on_save: Called in the main process after each checkpoint, with the loop.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizers: Sequence[Optimizer],
        settings: LoopSettings,
        run_dir: Path,
        *,
        group: Group = SINGLE,
        on_save: Callable[[Loop], None] | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.optimizers = list(optimizers)
        self.settings = settings
        self.run_dir = run_dir
        self.group = group
        self.on_save = on_save
        self.step = 0
        self.stopped = False
        self._signalled = False
        self._base_rates = [
            [each["lr"] for each in optimizer.param_groups] for optimizer in self.optimizers
        ]
        group.share(tensor.data for tensor in model.state_dict().values())
        self.averaged = AveragedModel(model, multi_avg_fn=self._average)
        self.averaged.n_averaged.fill_(1)  # else its first update would copy, not average
        if self.checkpoint_path.exists():
            self.load(self.checkpoint_path)

    @property
    def checkpoint_path(self) -> Path:
        """The run's only checkpoint; a new one replaces it at once or not at all."""
        return self.run_dir / "checkpoint.safetensors"

    def run(self) -> None:
        """Train to the end of the schedule, or until SIGINT or SIGTERM; save either way."""
        rows: list[dict[str, float]] = []
        began, num_steps = time.monotonic(), self.settings.schedule.num_steps
        with self._signals_caught(), self._progress(num_steps) as advance:
            while self.step < num_steps and not self.stopped:
                rows.append(self.train_step())
                advance()
                if self.step % self.settings.log_every == 0:
                    took, began = time.monotonic() - began, time.monotonic()
                    self._report(_means(rows), took)
                    rows = []
                if self.step % self.settings.save_every == 0 and self.step < num_steps:
                    self._checkpoint()
            self._checkpoint()

    def train_step(self) -> dict[str, float]:
        """Take one gradient step.

        Returns:
            The objective's scalars and the gradient norm, means over the processes.
        """
        factor = self.settings.schedule.factor(self.step)
        for optimizer, rates in zip(self.optimizers, self._base_rates, strict=True):
            for each, rate in zip(optimizer.param_groups, rates, strict=True):
                each["lr"] = rate * factor
        self.model.train()
        values = self.objective(self.step)
        values["loss"].backward()

        names = sorted(values)
        metrics = torch.stack([values[name].detach().float() for name in names])
        stop = torch.tensor([float(self._signalled)])
        params = [param for param in self.model.parameters() if param.requires_grad]
        for param in params:
            # a part that this batch did not use still takes part in the exchange
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        grads = [param.grad for param in params if param.grad is not None]
        self.group.sum_([*grads, metrics, stop])
        if self.group.size > 1:
            torch._foreach_div_(grads, self.group.size)
        norm = nn.utils.clip_grad_norm_(params, self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)
        self.step += 1
        self.stopped = bool(stop.item())  # all processes stop after the same step
        means = (metrics / self.group.size).tolist()
        return {**dict(zip(names, means, strict=True)), "grad_norm": norm.item()}

    def save(self, path: Path) -> None:
        """Write weights, averages, optimizer states and step number to one file, atomically."""
        tensors = {f"weights/{name}": value for name, value in self.model.state_dict().items()}
        averages = self.averaged.module.named_parameters()
        tensors |= {f"ema/{name}": value for name, value in averages}
        tensors |= {f"optimizer/{name}": value for name, value in self._optimizer_tensors()}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
        with atomic_write(path) as part:
            save_file(tensors, part, metadata={"training": json.dumps({"step": self.step})})

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            CheckpointError: if the file is of another model.
        """
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = under(tensors, "weights/")
        if {k: v.shape for k, v in weights.items()} != {
            k: v.shape for k, v in self.model.state_dict().items()
        }:
            raise CheckpointError(
                f"{path} holds another model than the one to train; "
                "give the run another name or remove its directory"
            )
        self.model.load_state_dict(weights)
        self.averaged.module.load_state_dict({**weights, **under(tensors, "ema/")})
        self._load_optimizer_tensors(under(tensors, "optimizer/"))
        self.step = state["step"]

    def ema_state(self, prefix: str = "") -> dict[str, Tensor]:
        """Return state dict of the averaged model, or of the part whose names start with
        `prefix`."""
        return under(self.averaged.module.state_dict(), prefix)

    def _average(self, averages: list[Tensor], params: list[Tensor], _count: Tensor) -> None:
        # short averages first: the start would weigh on them for long
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, params, 1 - decay)

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        names = {param: name for name, param in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for param, state in optimizer.state.items():
                for key, value in state.items():
                    yield f"{names[param]}/{key}", torch.as_tensor(value)

    def _load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        params = dict(self.model.named_parameters())
        owners = {
            param: optimizer
            for optimizer in self.optimizers
            for each in optimizer.param_groups
            for param in each["params"]
        }
        for name, value in tensors.items():
            param_name, key = name.rsplit("/", 1)
            param = params[param_name]
            owners[param].state[param][key] = value

    def _checkpoint(self) -> None:
        if self.group.is_main:
            self.save(self.checkpoint_path)
            if self.on_save is not None:
                self.on_save(self)
        self.group.barrier()

    def _report(self, metrics: dict[str, float], seconds: float) -> None:
        if not self.group.is_main:
            return
        row = {
            "step": self.step,
            **{name: round(value, 5) for name, value in metrics.items()},
            "seconds": round(seconds, 2),
        }
        logger.info(" ".join(f"{name} {value}" for name, value in row.items()))
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Turn a first SIGINT or SIGTERM into a stop after the step; a second acts at once."""

        def ask(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self._signalled = True
            signal.signal(signum, previous[signum])

        caught = (signal.SIGINT, signal.SIGTERM)
        previous = {signum: signal.signal(signum, ask) for signum in caught}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @contextmanager
    def _progress(self, num_steps: int) -> Iterator[Callable[[], object]]:
        """Yield a bar on a terminal where tqdm is installed; log lines serve elsewhere."""
        try:
            from tqdm import tqdm
        except ImportError:
            yield lambda: None
            return
        hidden = None if self.group.is_main else True  # None: hidden unless on a terminal
        with tqdm(total=num_steps, initial=self.step, disable=hidden, unit="step") as bar:
            yield bar.update


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every entry over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: fmean(value) for name, value in values.items()}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with `prefix`, without it."""
    return {
        name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)
    }
