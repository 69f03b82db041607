"""ONNX Runtime on a CPU (the default), or through its CUDA or TensorRT provider."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import DEFAULT_BATCH, MOST_LABELS, Profile, Range
from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.config import Backend
from sigrl_deploy.engines.choosing import Choice
from sigrl_deploy.engines.engine import UnavailableError
from sigrl_deploy.engines.onnx_graphs import OnnxEngine, OpenGraph
from sigrl_deploy.errors import BundleError, SigRLError, UsageError, printable
from sigrl_deploy.machine import cpus
from sigrl_deploy.machine.cache_folder import make_private
from sigrl_deploy.machine.gpu import NoGpuError, gpu_at_hand
from sigrl_deploy.vocabulary.cache import digest
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

NO_MEMORY = re.compile("allocate memory|out of memory|bad_alloc|bad allocation|ALLOC_FAILED|smaller than requested bytes")
TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# In larger parts what a ViT-B/16 computes no longer fits into the caches: on two cores 64 pictures at once take a tenth longer
# than in parts of four. Single ones leave many cores too little to share.
_PICTURES_A_THREAD = 2


class OnnxRuntimeEngine(OnnxEngine):
    """The bundle's graphs in ONNX Runtime, on the device and in the precision of `choice`.

    With the backend `onnxruntime-tensorrt` the visual graph runs in ONNX Runtime's TensorRT provider, whose engines are kept
    in `folder`. `threads` are the CPU's, by default `cpus.threads()`.

    Raises UnavailableError where the GPU's provider does not start, BundleError where a graph cannot be opened.
    """

    def __init__(self, bundle: Bundle, choice: Choice, folder: Path | None = None, threads: int | None = None) -> None:
        self.device, self._folder = choice.device.value, folder
        self._tensorrt = choice.backend is Backend.ONNXRUNTIME_TENSORRT
        self._on_device: WeakKeyDictionary[Vocabulary, dict[str, Any]] = WeakKeyDictionary()
        super().__init__(bundle, choice.precision, threads)
        if self.device == "cpu":
            self._most_at_once = _PICTURES_A_THREAD * self._threads
        because = f" ({choice.reason})" if choice.reason else ""
        provider = " with TensorRT" if self._tensorrt else ""
        self.description = f"ONNX Runtime {ort.__version__} on {self.device}{provider}{because}, {self.precision.value}"

    def _open(self, path: Path) -> OpenGraph:
        providers = providers_of(self.device)
        # Labels are encoded once and then cached, which is not worth building an engine for.
        if self._tensorrt and path.name == self._bundle.manifest.variants[self.precision].visual:
            manifest = self._bundle.manifest
            providers.insert(0, (TENSORRT, tensorrt_options(manifest, self._engine_folder(manifest.files[path.name]))))
            log.info("ONNX Runtime's TensorRT provider builds its engine when it first runs a bundle, which may take minutes")
        # Threads that sleep between the products of a picture would cost it a few per cent. Labels are encoded once.
        spins = path.name == self._bundle.manifest.variants[self.precision].visual
        return OpenSession(open_session(path, providers, threads=self._threads, spins=spins), path)

    def _engine_folder(self, graph: str) -> Path | None:
        """Where the TensorRT provider keeps the engine of a graph for this GPU; None where nothing can be kept."""
        if self._folder is None:
            return None
        try:
            gpu = gpu_at_hand()
            place = f"{gpu.name} {gpu.driver}"
        except NoGpuError:
            place = ""
        folder = self._folder / digest(graph, ort.__version__, place)
        try:
            make_private(folder)
        except OSError as error:
            log.warning("%s: cannot be written (%s); the engine is built again at the next start", folder, error.strerror)
            return None
        return folder

    def encode(self, pixels: Pixels, vocabulary: Vocabulary) -> tuple[FloatArray | None, FloatArray]:
        """See `Engine.encode`. With TensorRT larger batches than its engine takes are split, and more labels are refused."""
        if not self._tensorrt:
            return super().encode(pixels, vocabulary)
        rows = len(vocabulary.label_embedding)
        if rows > MOST_LABELS and self._bundle.manifest.arch.has_graph:
            problem = f"ONNX Runtime's TensorRT engine takes {MOST_LABELS}, and there are {rows}; use another `backend`"
            raise UsageError(problem, argument="labels")
        most = DEFAULT_BATCH.most
        parts = [super(OnnxRuntimeEngine, self).encode(pixels[i : i + most], vocabulary) for i in range(0, len(pixels), most)]
        local = [patches for patches, _ in parts if patches is not None]
        return np.concatenate(local) if local else None, np.concatenate([features for _, features in parts])

    def _rows(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """A vocabulary on the device, copied there once."""
        if vocabulary not in self._on_device:
            rows = super()._rows(vocabulary)
            self._on_device[vocabulary] = {
                name: ort.OrtValue.ortvalue_from_numpy(array, self.device, 0) for name, array in rows.items()
            }
        return self._on_device[vocabulary]


def provider_of(backend: Backend) -> str:
    """The execution provider that a backend needs on a GPU."""
    return TENSORRT if backend is Backend.ONNXRUNTIME_TENSORRT else CUDA


def has_provider(name: str) -> bool:
    """Whether this onnxruntime was built with a provider, which may still fail to start. Loads the libraries of CUDA."""
    if name not in ort.get_available_providers():
        return False
    if hasattr(ort, "preload_dlls"):  # where they were installed as packages; what it prints must not mix with results
        with redirect_stdout(sys.stderr):
            ort.preload_dlls()
    return True


def providers_of(device: str, **cuda: str) -> list[Any]:
    """Execution providers for "cpu" or "cuda", with further options of the CUDA provider."""
    # fp32 means fp32: TF32 keeps 10 bits of the mantissa.
    return [(CUDA, {"use_tf32": 0} | cuda), _CPU] if device == "cuda" else [_CPU]


def open_session(
    path: Path,
    providers: list[Any],
    model: bytes | Path | None = None,
    threads: int | None = None,
    spins: bool = False,
) -> ort.InferenceSession:
    """Open an ONNX file, or a `model` made from it, on `threads` CPU threads, by default `cpus.threads()`.

    With `spins` threads that are idle during a run spin, else they sleep. A `model` in bytes may have weights in other files
    of the folder of `path`.

    Raises BundleError where it cannot be opened, UnavailableError where a GPU's provider does not start.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors, which it prints at 3, are raised as exceptions too
    options.intra_op_num_threads = threads or cpus.threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    # Otherwise they spin on after a run, which takes cores from what follows it, and from other processes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        # Without its own fallback, which prints to standard output; the check below takes its place.
        session = ort.InferenceSession(model or path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])
        raise BundleError(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason}); export it again") from None
    # ONNX Runtime silently goes on without a provider that it cannot start.
    first = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
    if session.get_providers()[0] != first:
        reason, advice = (
            f"the {short(first)} provider did not start",
            "`sigrl-deploy doctor` checks the GPU's driver and libraries",
        )
        if first == TENSORRT:
            value = Backend.ONNXRUNTIME_TENSORRT.value
            raise UnavailableError(reason, f"{advice}; or use another `backend`", argument="backend", value=value)
        raise UnavailableError(reason, f"{advice}; or use `device='cpu'`", argument="device", value="cuda")
    log.debug("%s: %s, %d CPU threads", path, ", ".join(map(short, session.get_providers())), options.intra_op_num_threads)
    return session


def short(provider: str) -> str:
    """A provider's name as users know it."""
    return provider.removesuffix("ExecutionProvider").replace("Tensorrt", "TensorRT")


class OpenSession:
    """See `OpenGraph`. Inputs are arrays on the host, or `OrtValue`s where they stay on a device."""

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        self._session, self._path = session, path
        self.inputs: dict[str, list[int | str]] = {node.name: node.shape[1:] for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise self._explained(error, feeds) from None
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _explained(self, error: Exception, feeds: Mapping[str, Any]) -> SigRLError:
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            sizes = ", ".join(f"{name} {list(_shape(value))}" for name, value in feeds.items())
            advice = "take a smaller `batch_size`, fewer labels, or on a CPU fewer `threads`"
            return UsageError(f"{self._path}: no memory for {sizes}; {advice}")
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])
        return BundleError(f"{self._path}: ONNX Runtime {ort.__version__} cannot run it ({reason}); export it again")


def _shape(value: Any) -> Sequence[int]:
    return value.shape() if isinstance(value, ort.OrtValue) else value.shape


def tensorrt_options(manifest: Manifest, folder: Path | None) -> dict[str, Any]:
    """Options of ONNX Runtime's TensorRT provider for a visual graph: one engine for all sizes, kept in `folder`.

    No precision is set: types are the file's. TensorRT before 11 then runs in fp32 what it cannot keep, which is slower and
    never wrong; its fp16 flag would let norms and softmax overflow.
    """
    from sigrl_deploy.tensorrt.build import shapes

    inputs = shapes(manifest, "visual", Profile(DEFAULT_BATCH, Range(1, 100, MOST_LABELS)))
    if not manifest.arch.has_graph:
        inputs = {"pixels": inputs["pixels"]}
    options: dict[str, Any] = {}
    for index, name in enumerate(("min", "opt", "max")):
        sizes = [f"{key}:{'x'.join(map(str, shape[index]))}" for key, shape in inputs.items()]
        options[f"trt_profile_{name}_shapes"] = ",".join(sizes)
    if folder is not None:
        options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder)}
        options |= {"trt_timing_cache_enable": True, "trt_timing_cache_path": str(folder)}
    return options
