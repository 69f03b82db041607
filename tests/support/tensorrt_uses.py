"""What source files use of TensorRT's Python module, followed through its objects: `Uses(files, trt).wrong` is what it lacks.

The module is whatever is called `trt`. From there types follow assignments, calls, and what the bindings' docstrings say that
their methods take and return; a parameter has the type of what is passed for it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNATURE = re.compile(r"(?:\d+\. )?(?:\w+)?(\(.*\))(?: -> (.+))?")
OVERLOADED = "(*args, **kwargs)"
ROUNDS = 6  # types travel a call a round


@dataclass(frozen=True)
class Type:
    """Of an expression: `kind` is "module", "class", "instance" or "method" of `of`, a class of the bindings; "own" is an
    instance of a class of the files, by its name, and "other" is of no interest.
    """

    kind: str
    of: Any = None
    name: str = ""


OTHER = Type("other")


class Uses:
    """`names` has every use that was followed, `wrong` those that the module lacks or calls otherwise, and `unknown` the
    attributes of what is annotated as Any and could not be followed.
    """

    def __init__(self, files: Iterable[Path], trt: Any) -> None:
        self.trt = trt
        self.names: set[str] = set()
        self.wrong: set[str] = set()
        self.unknown: set[str] = set()
        self._types: dict[tuple[str, str], Type] = {}  # by scope and name
        self._functions: dict[str, ast.FunctionDef] = {}
        self._scopes: dict[ast.FunctionDef, str] = {}
        self._classes: dict[str, ast.ClassDef] = {}
        trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in files}
        for name, tree in trees.items():
            self._define(tree, name)
        for _ in range(ROUNDS):
            self.unknown.clear()
            for name, tree in trees.items():
                self._statements(tree.body, [name])

    def _define(self, tree: ast.AST, scope: str) -> None:
        for node in ast.iter_child_nodes(tree):
            inner = scope
            if isinstance(node, ast.ClassDef):
                self._classes[node.name] = node
                inner = node.name
            elif isinstance(node, ast.FunctionDef):
                inner = self._scopes[node] = f"{scope}.{node.name}"
                self._functions[inner if isinstance(tree, ast.ClassDef) else node.name] = node
            self._define(node, inner)

    def _statements(self, body: Iterable[ast.AST], scopes: list[str]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                self._function(node, scopes)
            elif isinstance(node, ast.ClassDef):
                for base in node.bases:
                    self._subclass(node, self._type(base, scopes))
                self._statements(node.body, [*scopes, node.name])
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                found = self._type(node.value, scopes)
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._assign(target, found, node.value, scopes)
            elif isinstance(node, ast.Return) and node.value is not None:
                self._bind(scopes[-1], "return", self._type(node.value, scopes))
            else:
                if isinstance(node, ast.expr):
                    self._type(node, scopes)
                else:
                    self._statements(ast.iter_child_nodes(node), scopes)

    def _function(self, node: ast.FunctionDef, scopes: list[str]) -> None:
        scope = self._scopes[node]
        owner = scopes[-1] if scopes[-1] in self._classes else None
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            annotation = argument.annotation
            if owner and argument is arguments[0]:
                self._bind(scope, argument.arg, Type("own", name=owner))
            elif isinstance(annotation, ast.Name) and annotation.id == "Any":
                self._types.setdefault((scope, argument.arg), Type("any"))
            elif isinstance(annotation, ast.Name) and annotation.id in self._classes:
                self._bind(scope, argument.arg, Type("own", name=annotation.id))
        self._statements(node.body, [*scopes, scope])

    def _subclass(self, node: ast.ClassDef, base: Type | None) -> None:
        """Methods of a class that extends one of the bindings override what is there, with as many parameters."""
        if base is None or base.kind != "class":
            return
        for method in (child for child in node.body if isinstance(child, ast.FunctionDef)):
            use = f"{base.of.__name__}.{method.name}"
            self.names.add(use)
            known = list(signatures(getattr(base.of, method.name, None)))
            same = [(given, _) for given, _ in known if len(given.parameters) == len(method.args.args)]
            if not same and method.name != "__init__":
                self.wrong.add(f"{use}: overridden with {len(method.args.args)} parameters")
            for given, _ in same[:1]:
                for argument, parameter in zip(method.args.args[1:], list(given.parameters.values())[1:], strict=True):
                    self._bind(self._scopes[method], argument.arg, self._named(parameter.annotation))

    def _assign(self, target: ast.expr, found: Type | None, value: ast.expr, scopes: list[str]) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [None] * len(target.elts)
            for one, part in zip(target.elts, values, strict=True):
                self._assign(one, self._type(part, scopes) if part else None, part or value, scopes)
        elif isinstance(target, ast.Name):
            self._bind(scopes[-1], target.id, found)
        elif isinstance(target, ast.Attribute):
            owner = self._type(target.value, scopes)
            if owner is not None and owner.kind == "own":
                self._bind(owner.name, target.attr, found)
            else:
                self._attribute(target, owner, scopes, store=True)

    def _bind(self, scope: str, name: str, found: Type | None) -> None:
        before = self._types.get((scope, name))
        if found is not None and found.kind != "any" and before in (None, OTHER, Type("any")):
            self._types[scope, name] = found

    def _type(self, node: ast.expr, scopes: list[str]) -> Type | None:
        """The type of an expression, whose uses are noted on the way; None where it cannot be followed."""
        if isinstance(node, ast.Name):
            if node.id == "trt":
                return Type("module")
            return next((self._types[s, node.id] for s in reversed(scopes) if (s, node.id) in self._types), None)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self._type(node.value, scopes), scopes)
        if isinstance(node, ast.Call):
            return self._call(node, scopes)
        if isinstance(node, ast.IfExp):
            self._type(node.test, scopes)
            chosen = [self._type(branch, scopes) for branch in (node.body, node.orelse)]
            return chosen[0] or chosen[1]
        if isinstance(node, ast.Constant):
            return OTHER if node.value is not None else None
        self._statements(ast.iter_child_nodes(node), scopes)
        return None

    def _attribute(self, node: ast.Attribute, owner: Type | None, scopes: list[str], store: bool = False) -> Type | None:
        if owner is None or owner.kind == "other":
            return Type("module") if node.attr == "trt" else None
        if owner.kind == "any":
            self.unknown.add(f"{scopes[-1]}: {ast.unparse(node)}")
            return None
        if owner.kind == "own":
            return Type("module") if node.attr == "trt" else self._of_own(owner.name, node.attr)
        return self._of_bindings(owner, node.attr, store)

    def _of_own(self, name: str, attribute: str) -> Type | None:
        if f"{name}.{attribute}" in self._functions:
            return Type("own method", name=f"{name}.{attribute}")
        return self._types.get((name, attribute))

    def _of_bindings(self, owner: Type, attribute: str, store: bool) -> Type | None:
        holder = self.trt if owner.kind == "module" else owner.of
        use = attribute if owner.kind == "module" else f"{owner.of.__qualname__}.{attribute}"
        self.names.add(use)
        if owner.kind == "method" or not hasattr(holder, attribute):
            self.wrong.add(use)
            return None
        found = getattr(holder, attribute)
        if isinstance(found, property):
            if store and found.fset is None:
                self.wrong.add(f"{use}: cannot be set")
            return next((self._named(returns) for _, returns in signatures(found.fget)), None)
        if isinstance(found, type):
            return Type("class", found)
        if callable(found) and not isinstance(found, type):
            return Type("method", found, "bound" if owner.kind == "instance" else use)
        return Type("instance", type(found))

    def _call(self, node: ast.Call, scopes: list[str]) -> Type | None:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and isinstance(node.args[1], ast.Constant):
            return self._type(ast.Attribute(node.args[0], str(node.args[1].value), ast.Load()), scopes)
        called = self._type(node.func, scopes)
        positional = [self._type(argument, scopes) for argument in node.args]
        keywords = {keyword.arg: self._type(keyword.value, scopes) for keyword in node.keywords}
        if called is None:
            return self._call_own(node, positional, keywords, scopes)
        if called.kind == "own method":
            return self._pass(called.name, [None, *positional], keywords)
        if called.kind in ("class", "method"):
            return self._call_bindings(node, called)
        return None

    def _call_own(
        self, node: ast.Call, positional: list[Type | None], keywords: dict[str | None, Type | None], scopes: list[str]
    ) -> Type | None:
        if not isinstance(node.func, ast.Name):
            return None
        if node.func.id in self._classes:
            self._pass(f"{node.func.id}.__init__", [None, *positional], keywords)
            return Type("own", name=node.func.id)
        return self._pass(node.func.id, positional, keywords)

    def _pass(self, name: str, positional: list[Type | None], keywords: dict[str | None, Type | None]) -> Type | None:
        """Give a function of the files what is passed to it; returns what it returns."""
        function = self._functions.get(name)
        if function is None:
            return None
        scope = self._scopes[function]
        for argument, found in zip(function.args.args, positional, strict=False):
            self._bind(scope, argument.arg, found)
        for keyword, found in keywords.items():
            self._bind(scope, str(keyword), found)
        return self._types.get((scope, "return"))

    def _call_bindings(self, node: ast.Call, called: Type) -> Type | None:
        function = called.of.__init__ if called.kind == "class" else called.of
        bound = called.kind == "class" or called.name == "bound"
        known = list(signatures(function))
        unpacked = any(isinstance(argument, ast.Starred) for argument in node.args)
        given = [None] * (bound + sum(not isinstance(argument, ast.Starred) for argument in node.args))
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        fits = [(signature, returns) for signature, returns in known if takes(signature, given, keywords, unpacked)]
        if not fits:
            expected = " or ".join(str(signature) for signature, _ in known) or "nothing that its docstring tells"
            self.wrong.add(f"{ast.unparse(node)}: takes {expected}")
        if called.kind == "class":
            return Type("instance", called.of)
        return next((self._named(returns) for _, returns in fits or known), None)

    def _named(self, annotation: str) -> Type | None:
        """The type that a docstring names: "tensorrt.tensorrt.ILogger.Severity", or in C++ "nvonnxparser::IParserError"."""
        parts = annotation.replace("::", ".").split(".")
        for start in range(len(parts)):
            found: Any = self.trt
            for part in parts[start:]:
                found = getattr(found, part, None) or getattr(found, part.removeprefix("I"), None)
            if isinstance(found, type):
                return Type("instance", found)
        return OTHER


def takes(signature: inspect.Signature, given: list[None], keywords: dict[str, None], unpacked: bool) -> bool:
    """Whether a call with these arguments binds; with what else is unpacked into it, if so."""
    try:
        (signature.bind_partial if unpacked else signature.bind)(*given, **keywords)
    except TypeError:
        return False
    return True


def signatures(function: Any) -> Iterator[tuple[inspect.Signature, str]]:
    """The signatures that pybind11 writes into a docstring, each with what it returns."""
    for line in (getattr(function, "__doc__", None) or "").splitlines():
        match = SIGNATURE.fullmatch(line.strip())
        if match is None or match[1] == OVERLOADED:
            continue
        try:
            # Defaults such as <Kind.VALUE: 0>, and types of C++, are no Python.
            text = re.sub(r"<[^>]*>", "...", match[1]).replace("::", ".")
            head = ast.parse(f"def f{text}: ...").body[0]
        except SyntaxError:
            continue
        assert isinstance(head, ast.FunctionDef)
        names, kind = head.args.args, inspect.Parameter.POSITIONAL_OR_KEYWORD
        defaults = [inspect.Parameter.empty] * (len(names) - len(head.args.defaults)) + [None] * len(head.args.defaults)
        parameters = [
            inspect.Parameter(
                name.arg, kind, default=default, annotation=ast.unparse(name.annotation) if name.annotation else ""
            )
            for name, default in zip(names, defaults, strict=True)
        ]
        yield inspect.Signature(parameters), match[2] or ""
