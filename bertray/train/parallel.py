"""How ranks share a model: a copy each (DDP), or also its weights, a part each (FSDP2). No Ray.

Which of the two it is can be told from the model, and all that differs between them stands here.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from bertray.train.layers import own_layers

Strategy = Literal["ddp", "fsdp2"]


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Leave each rank a part of each weight, on ``device``; before its optimizer is made.

    A layer's weights are put together where they are needed, and let go of again. What is outside
    of layers, or shared by all of them, stays from the forward pass to the backward one.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*own_layers(model), model):
        fully_shard(module, mesh=mesh)


def ddp_options(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """How DDP is to wrap a model whose layers are frozen as they will be; leaves no gradients.

    Some families have parameters that no gradient comes to, as XLNet's for tokens that are to be
    guessed, and a linear head leaves a pooler idle. DDP waits for them unless it looks for them in
    each step, which takes time: so one pass over any row's inputs tells whether there are such.
    """
    model(**inputs).logits.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    some_are_idle = any(parameter.grad is None for parameter in trained)
    model.zero_grad()
    return {"gradient_as_bucket_view": True, "find_unused_parameters": some_are_idle}


def is_sharded(model: nn.Module) -> bool:
    """Whether every forward pass is one of all ranks together."""
    return isinstance(model, FSDPModule)


def bare_of(model: nn.Module) -> nn.Module:
    """The model whose forward pass asks nothing of other ranks, if there is one."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """Add up gradients without telling the other ranks; the step's last pass tells them.

    Where weights are shared out so are gradients, in each pass: no rank has room for all of them.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale gradients down to a global norm; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def reshard(model: nn.Module) -> None:
    """Let go of weights that no backward pass will let go of."""
    if isinstance(model, FSDPModule):
        model.reshard()


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name. All ranks are to ask; of a sharded model rank 0 alone gets them."""
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def gather_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state, in the same way."""
    state = optimizer.state_dict()
    whole = {
        place: {name: _whole(value) for name, value in values.items()}
        for place, values in state["state"].items()
    }
    return {**state, "state": whole}


def scatter_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Undo `gather_state`, by whichever strategy and number of ranks it was gathered."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shared = {
        place: {name: _like(parameters[place], value) for name, value in values.items()}
        for place, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shared})


def _whole(value: Any) -> Any:
    """What all ranks have of a value, on rank 0."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else None


def _like(parameter: Tensor, value: Any) -> Any:
    """A rank's part of what belongs to a parameter; a count of steps belongs to all of it."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
