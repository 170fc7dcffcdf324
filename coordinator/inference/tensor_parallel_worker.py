"""The processes of a model that is cut over several: torchrun's, and those that it starts.

``python -m coordinator.inference.tensor_parallel_worker N cpu|cuda`` becomes torchrun and starts N
of ``… rank``. The first of these is the engine's process, as :mod:`engine_worker` describes it.

E1  nothing listens on more than loopback: torchrun's own store would listen everywhere, and what it
    holds is unpickled
E2  the others end with torchrun, however that ends; torchrun ends when one of them does
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final

from coordinator.inference import engine_worker
from coordinator.inference.onnx_runtime import KV_SHARE, PREFIX_SHARE, when_asked
from coordinator.inference.prefix_cache import MemoryBlocks, PrefixCache
from coordinator.inference.slots import SlotRuntime
from coordinator.inference.tensor_parallel import Group, TensorParallelModel, follow
from coordinator.inference.token_runtime import TokenRuntime
from shared.errors import ModelError
from shared.extras import require
from shared.models.encoder import BaseModel
from shared.processes import die_with_parent

RUNTIME: Final = "tensor-parallel"
_MODULE: Final = "coordinator.inference.tensor_parallel_worker"
_MEETING: Final = "LLMOS_MEETING"
_LEAST_TOKENS: Final = 256
_GPU_SHARE: Final = 0.8
"""Of a GPU's memory that is free once the weights are there; the rest is for the steps."""


def launch(count: int, device: str) -> None:
    """Become torchrun with ``count`` processes. Does not return.

    Source: PyTorch's rendezvous over a file in place of TCP (``store_type=file``).
    """
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # E1
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    os.environ[_MEETING] = _shared_file()
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or transformers would take what it sees
    torchrun: Any = require("torch.distributed.run", extra="llm")
    torchrun.main(
        [
            *("--nnodes", "1", "--nproc-per-node", str(count)),
            *("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file"),
            *("--rdzv-endpoint", _shared_file(), "--rdzv-id", "llmos"),
            *("-m", _MODULE, "rank", device),
        ]
    )


def _shared_file() -> str:
    """An empty file that processes of this user can open and that is gone with this one."""
    if hasattr(os, "memfd_create"):
        return f"/proc/{os.getpid()}/fd/{os.memfd_create('llmos-meeting')}"
    file, path = tempfile.mkstemp(prefix="llmos-meeting-")
    os.close(file)
    return path


def rank(device: str) -> None:
    """Be one of the processes."""
    die_with_parent(os.getppid())  # E2
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in engine_worker; torch reads it
    group = Group(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        meeting=os.environ[_MEETING],
        cuda=device == "cuda",
    )
    with ExitStack() as stack:
        stack.callback(group.close)
        if not group.leads:
            # The first tells why, on standard output, which is its own. It would be ended before
            # that if this one failed.
            with suppress(ModelError):
                follow(group)
            return

        def opened(base: BaseModel, settings: Mapping[str, Any]) -> TokenRuntime:
            cuda = device == "cuda"
            model = TensorParallelModel(group, base, precision=settings["precision"], cuda=cuda)
            stack.callback(model.close)
            return _slots(model, group, base, settings, cuda=cuda)

        engine_worker.main({RUNTIME: opened})


def _slots(
    model: TensorParallelModel,
    group: Group,
    base: BaseModel,
    settings: Mapping[str, Any],
    *,
    cuda: bool,
) -> TokenRuntime:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = int(memory * KV_SHARE)
    if cuda:
        room = int(group.torch.cuda.mem_get_info()[0] * _GPU_SHARE) * group.size
    kv_tokens = (settings["kv_bytes"] or room) // model.bytes_per_token
    if kv_tokens < min(_LEAST_TOKENS, model.context_tokens):
        raise ModelError(
            f"there is memory for keys and values of {kv_tokens} tokens of {base.name}: "
            f"{_LEAST_TOKENS * model.bytes_per_token} bytes are the least"
        )
    return SlotRuntime(
        model,
        slots=settings["slots"],
        kv_tokens=kv_tokens,
        follow=when_asked(base, model),
        prefixes=PrefixCache(
            MemoryBlocks(int(memory * PREFIX_SHARE)),
            f"{base.digest}/{settings['precision']}/{group.size}",
        ),
    )


def main() -> None:
    """What the words on the command line say."""
    first, device = sys.argv[1:3]
    if first == "rank":
        rank(device)
    else:
        launch(int(first), device)


if __name__ == "__main__":
    main()
