"""A built engine, loaded on the current GPU, which runs on torch's tensors and stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigrl_deploy.errors import BundleError
from sigrl_deploy.files import replacing
from sigrl_deploy.machine.cache_folder import PRIVATE, make_private
from sigrl_deploy.tensorrt.library import Library


class LoadedEngine:
    """A deserialised engine.

    An engine is native code, so it has to be trusted as much as the bundle that holds it.

    Args:
        library: the library that built it.
        path: the engine's file.
        folder: where TensorRT for RTX keeps the kernels that it compiles for this GPU; None keeps none.
        host_code: also accept an engine that holds code for the host, as version-compatible ones do.

    Raises BundleError where the library does not accept the file.
    """

    def __init__(self, library: Library, path: Path, folder: Path | None, host_code: bool = False) -> None:
        self.trt = library.trt
        self.errors: deque[str] = deque(maxlen=8)  # the library's last error messages
        kinds = ("ERROR", "INTERNAL_ERROR")
        self._logger = library.logger(lambda severity, text: self.errors.append(text) if severity in kinds else None)
        self._runtime = self.trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = host_code
        self.engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            reason = self.errors[0] if self.errors else "it gave no reason"
            raise BundleError(f"{path}: {library.full_name} cannot load it ({reason}); build it again with `force`")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = {name: self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT for name in names}
        self.inputs = [name for name in names if is_input[name]]
        self.outputs = {name: _dtype(self.trt, self.engine.get_tensor_dtype(name)) for name in names if not is_input[name]}
        self._kept = b""
        self._compiled = folder / f"{path.stem}.compiled" if folder else None

    def context(self) -> Context:
        """A new context, for one worker or one captured pass."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self.trt, "DynamicShapesKernelSpecializationStrategy"):
            return Context(self, self.engine.create_execution_context(strategy))
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # EAGER, since a captured pass would replay the generic kernels that run until specialised ones are compiled.
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        if self._compiled is not None and self._compiled.is_file():
            cache.deserialize(self._compiled.read_bytes())
        config.set_runtime_cache(cache)
        return Context(self, self.engine.create_execution_context(config), cache)

    def keep_compiled(self, cache: Any) -> None:
        """Save what TensorRT for RTX has compiled, for the next process. A folder that cannot be written is ignored."""
        if self._compiled is None or cache is None or (content := bytes(cache.serialize())) == self._kept:
            return
        self._kept = content
        with suppress(OSError):
            make_private(self._compiled.parent)
            with replacing(self._compiled, PRIVATE) as temporary:
                temporary.write_bytes(content)


class Context:
    """An execution context with scratch memory of its own, on torch's current stream. Not safe for two threads at once."""

    def __init__(self, loaded: LoadedEngine, context: Any, cache: Any = None) -> None:
        if context is None:
            raise torch.OutOfMemoryError("TensorRT could not create an execution context")
        self._loaded, self._context, self._cache = loaded, context, cache
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch = torch.empty(0, dtype=torch.uint8, device="cuda")

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs by name, contiguous on the GPU in the engine's dtypes, to outputs by name. Enqueues work and returns."""
        given = {name: inputs[name] for name in self._loaded.inputs}
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        if fresh := shapes != self._shapes:
            self._set_shapes(shapes)
        outputs = {
            name: torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda")
            for name, dtype in self._loaded.outputs.items()
        }
        for name, tensor in (given | outputs).items():
            # TensorRT requires an address even for an empty tensor.
            self._context.set_tensor_address(name, tensor.data_ptr() or self._scratch.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError(f"TensorRT could not enqueue {shapes}: {self._reason()}")
        if fresh:
            self._loaded.keep_compiled(self._cache)
        return outputs

    def _reason(self) -> str:
        return self._loaded.errors[-1] if self._loaded.errors else "it gave no reason"

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise RuntimeError(f"TensorRT refuses the shape {shape} of {name}: {self._reason()}")
        needed = max(1, self._context.update_device_memory_size_for_shapes())
        if needed > self._scratch.numel():
            self._scratch = torch.empty(needed, dtype=torch.uint8, device="cuda")
        self._context.device_memory = self._scratch.data_ptr()
        self._shapes = shapes


def _dtype(trt: Any, dtype: Any) -> torch.dtype:
    known = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bfloat16: torch.bfloat16, trt.int64: torch.int64}
    return known[dtype]
