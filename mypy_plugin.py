"""A mypy plugin: `msgspec.structs.replace` is checked like the constructor of the struct.

Its type hints take any keyword argument of any type. With the plugin, mypy reports the name of a field that
the struct doesn't have, and a value of the wrong type.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.nodes import ARG_NAMED_OPT, ARG_POS
from mypy.plugin import FunctionSigContext, Plugin
from mypy.types import CallableType, FunctionLike, Instance, get_proper_type


class StructReplace(Plugin):
    """Gives each call of `replace` the signature that fits its struct."""

    def get_function_signature_hook(
        self, fullname: str
    ) -> Callable[[FunctionSigContext], FunctionLike] | None:
        """Return the hook for `msgspec.structs.replace`."""
        return _signature if fullname == "msgspec.structs.replace" else None


def _signature(context: FunctionSigContext) -> FunctionLike:
    """Return `(struct, /, *, field: its type = ...) -> struct`."""
    generic = context.default_signature
    if not context.args or not context.args[0]:
        return generic
    struct = get_proper_type(context.api.get_expression_type(context.args[0][0]))
    method = struct.type.get_method("__init__") if isinstance(struct, Instance) else None
    init = get_proper_type(method.type) if method is not None else None
    if not isinstance(init, CallableType):
        return generic
    fields = init.arg_names[1:]
    return generic.copy_modified(
        arg_types=[struct, *init.arg_types[1:]],
        arg_kinds=[ARG_POS, *(ARG_NAMED_OPT for _ in fields)],
        arg_names=[None, *fields],
        ret_type=struct,
        variables=(),
    )


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; mypy calls this."""
    del version
    return StructReplace
