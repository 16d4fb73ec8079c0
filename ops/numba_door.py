"""The door to Numba's private parts and to LLVM: whatever of them the project uses passes through here, and nothing else imports them.

What Numba documents (njit, types, config, ...) is imported from `numba` where it is needed. The rest may change with any version, so
that a new one is tried by tests/ops/test_numba_door.py, which exercises each name of this module and says for which versions it holds.
"""

import contextlib
import ctypes
import functools
import inspect
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llvmlite import binding, ir
from numba import config, njit
from numba.core import cgutils
from numba.core.caching import Cache, CompileResultCacheImpl, _CacheLocator
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array, populate_array

__all__ = [
    "array_at",
    "array_data",
    "callback",
    "compiled",
    "declared",
    "host_cpu",
    "host_features",
    "inlined",
    "ir",
    "keep",
    "language",
    "part",
    "registered",
]

_LOG = logging.getLogger(__name__)


class Place(Protocol):
    """Where compiled code is kept, and what it depends on."""

    @property
    def folder(self) -> Path | None: ...

    @property
    def stamp(self) -> str: ...


def host_cpu() -> str:
    """LLVM's name of the CPU."""
    return str(binding.get_host_cpu_name())


def host_features() -> str:
    """LLVM's names of what the CPU can do that code is compiled for, such as "+avx2".

    A 64-bit Arm CPU has NEON also where the system tells nothing of it, or where code is compiled for any such CPU.
    """
    features = binding.get_host_cpu_features().flatten() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return str(features) or ("+neon" if str(binding.get_process_triple()).startswith(("aarch64", "arm64")) else "")


def callback(function: Callable[..., Any], kind: Any, options: Mapping[str, Any], place: Place) -> Any:
    """Compile `function` now, as C code calls it (`address`, `ctypes`), and keep the result; `kind`: its Numba signature."""
    compiled: Any = CFunc(function, (kind.args, kind.return_type), {}, dict(options))
    if place.folder is not None:
        compiled._cache = _cache(function, place)
    compiled.compile()
    return compiled


def compiled(function: Callable[..., Any], kind: Any, options: Mapping[str, Any]) -> tuple[str, tuple[str, ...], bytes]:
    """`function` as C code calls it, `kind` being its Numba signature: its name in its object code, what that needs of others, the code."""
    made: Any = CFunc(function, (kind.args, kind.return_type), {}, dict(options), pipeline_class=_WholeCompiler)
    made.compile()
    library = made._library
    needs = [found.name for found in library._final_module.functions if found.is_declaration and not found.name.startswith("llvm.")]
    return made.native_name, tuple(needs), library._get_compiled_object()


def language(function: Callable[..., Any], kind: Any, options: Mapping[str, Any], machine: Any) -> str:
    """What LLVM makes the code of `compiled` of, in its language and optimised for `machine`, one of LLVM's target machines."""
    made: Any = CFunc(function, (kind.args, kind.return_type), {}, dict(options), pipeline_class=_ReadCompiler)
    codegen = cpu_target.target_context.codegen()
    own, codegen._tm = codegen._tm, machine
    try:
        made.compile()
    finally:
        codegen._tm = own
    return str(made._library.language)


def part(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """`function` for what compiled functions call. Numba would optimise and translate each with all that it calls, for Python and for C
    code, and then again as part of its callers; this does so only where a whole is made. Python cannot call it."""
    return njit(pipeline_class=_PartCompiler, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function)


class _Compiler(CompilerBase):
    _library: type[JITCodeLibrary]

    def define_pipelines(self) -> list[Any]:
        self.state.library = self._library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.library.enable_object_caching()
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


class _Whole(JITCodeLibrary):
    """What is called from outside by one name. LLVM is told so: what is left of the others is what it calls, as it calls it."""

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and not function.name.startswith("cfunc."):
                function.linkage = "internal"
        super()._optimize_final_module()


class _Part(JITCodeLibrary):
    """What others link, neither optimised nor translated on its own."""

    def _optimize_final_module(self) -> None: ...

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Of something that raises TypeError: what Numba would call from Python is not there."""
        self._ensure_finalized()
        return int(ctypes.cast(ctypes.pythonapi.PyObject_GetIter, ctypes.c_void_p).value or 0)

    @property
    def codegen(self) -> "_Part":
        """Who is asked to tell code where its environment lies, which a part has none of."""
        return self

    def set_env(self, name: str, environment: Any) -> None: ...


class _Read(_Whole):
    """What is read, and becomes no machine code: it may have instructions of other CPUs."""

    def _finalize_final_module(self) -> None:
        self.language = str(self._final_module)
        self._finalized = True

    get_pointer_to_function = _Part.get_pointer_to_function


class _WholeCompiler(_Compiler):
    _library = _Whole


class _ReadCompiler(_Compiler):
    _library = _Read


class _PartCompiler(_Compiler):
    _library = _Part


def keep(compiled: Any, place: Place) -> Any:
    """Have what a function of `numba.njit` is compiled to kept on disk."""
    if place.folder is not None:
        compiled._cache = _cache(compiled.py_func, place)
    return compiled


def _cache(function: Callable[..., Any], place: Place) -> Cache:
    class Locator(_CacheLocator):
        def __init__(self, function: Callable[..., Any], file: str) -> None:
            self._py_file, self._line = file, function.__code__.co_firstlineno

        @classmethod
        def from_function(cls, function: Callable[..., Any], file: str) -> "Locator":
            return cls(function, file)

        def get_cache_path(self) -> str:
            return str(place.folder)

        def get_source_stamp(self) -> str:
            return place.stamp

        def get_disambiguator(self) -> str:
            return str(self._line)

    class Implementation(CompileResultCacheImpl):
        _locator_classes = [Locator]  # noqa: RUF012 - the base class's name

        def __init__(self, function: Callable[..., Any]) -> None:
            chosen, config.CACHE_LOCATOR_CLASSES = getattr(config, "CACHE_LOCATOR_CLASSES", ""), ""
            try:
                super().__init__(function)
            finally:
                config.CACHE_LOCATOR_CLASSES = chosen

    return type("_Cache", (_ForgivingCache,), {"_impl_class": Implementation})(function)


class _ForgivingCache(Cache):
    @contextlib.contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, AttributeError, ImportError) as error:
            _LOG.warning("compiled code in %s cannot be used (%s); it is compiled again", self.cache_path, error)


def registered(value: Callable[[Any], Any]) -> Callable[[type], type]:
    """Decorator of a Numba type whose values are plain LLVM values, of the type value(the Numba type)."""

    def register(kind: type) -> type:
        @register_model(kind)
        class _Model(models.PrimitiveModel):
            def __init__(self, manager: Any, instance: Any) -> None:
                super().__init__(manager, instance, value(instance))

        return kind

    return register


def inlined(
    function: Callable[..., Any], typed: Callable[..., Any], emit: Callable[[Any, Any, Any, Any], Any], literal: bool
) -> Callable[..., Any]:
    """What stands for `function` in compiled code: instructions in the middle of the caller's.

    typed: Numba types of the arguments -> signature; emit(context, builder, signature, args): the LLVM value of the result, None for
    none. literal: whether constants are typed by their value.
    """

    def defined(typing: Any, *kinds: Any) -> Any:
        return typed(*kinds), lambda context, *call: context.get_dummy_value() if (value := emit(context, *call)) is None else value

    functools.update_wrapper(defined, function)
    parameters = [inspect.Parameter("typing", inspect.Parameter.POSITIONAL_ONLY), *inspect.signature(function).parameters.values()]
    defined.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(prefer_literal=literal)(defined)


def declared(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """The function `name` of LLVM, the compiler's library or the C library, with types of LLVM."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def array_data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to the first element of an array of the Numba type `kind`."""
    return make_array(kind)(context, builder, array).data


def array_at(context: Any, builder: Any, kind: Any, address: Any, length: Any) -> Any:
    """The numbers at an address, an integer, as a value of `kind`: a one-dimensional contiguous array, which does not own them."""
    array = make_array(kind)(context, builder)
    item = length.type(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    populate_array(
        array,
        data=builder.inttoptr(address, array.data.type),
        shape=cgutils.pack_array(builder, [length]),
        strides=cgutils.pack_array(builder, [item]),
        itemsize=item,
        meminfo=None,
    )
    return array._getvalue()
