"""Triton's interpreter without what it does again and again, a good part of the time that a kernel takes in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from triton import language
from triton.runtime import interpreter


def quicken() -> None:
    """Look dtypes up, of which it makes a table for every value, and replace its language once for each kernel.

    It replaces it again for every function that the kernel calls.
    """
    dtype_of, replaced = interpreter._get_np_dtype, interpreter._patch_lang
    known, done = cache(dtype_of), set[frozenset[str]]()

    def quick_dtype_of(wanted: Any) -> Any:
        element = wanted.scalar
        return dtype_of(element) if element.is_ptr() else known(element)

    def replaced_once(function: Callable[..., object]) -> Any:
        if (seen := _seen_by(function)) in done:
            return interpreter._LangPatchScope()
        scope = replaced(function)
        if not done:  # a kernel; what it calls restores nothing
            restore = scope.restore

            def end() -> None:
                done.clear()
                restore()

            scope.restore = end
        done.add(seen)
        return scope

    interpreter._get_np_dtype, interpreter._patch_lang = quick_dtype_of, replaced_once


@cache
def _seen_by(function: Callable[..., object]) -> frozenset[str]:
    """Which of the language's modules it has a name for."""
    values = list(function.__globals__.values())
    return frozenset(module.__name__ for module in (language, language.core) if any(value is module for value in values))
