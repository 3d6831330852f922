"""Vectors of `LANES` float32 in kernels: `load`, `store`, `splat`, `zero`, `multiply_add`, and +, - and *.

numba turns simple loops into vector instructions by itself, but does not keep sums in registers from one iteration of a
loop to the next. Each of these functions compiles to one instruction where the CPU has AVX2 and FMA, or AVX-512. An
index counts elements from the start of an array, which must be contiguous and long enough; nothing checks that.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"
from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2]  # of the processor for which numba compiles
LANES = 16 if "+avx512f" in _FEATURES else 8
_intrinsic: Any = intrinsic  # untyped: the functions it returns are called without their first parameter, `typing`
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INDICES = ir.VectorType(ir.IntType(32), LANES)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _FLOATS)


_vector = _Vector()


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@_intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """`array[index : index + LANES]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)

    return _vector(array, types.intp), generate


@_intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """`array[index : index + LANES] = vector`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@_intrinsic
def splat(typing: Any, array: Any, index: Any) -> Any:
    """A vector with `array[index]` in all its places."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_pointer(context, builder, signature.args[0], *arguments))
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(_INDICES, [0] * LANES))

    return _vector(array, types.intp), generate


@_intrinsic
def zero(typing: Any) -> Any:
    return _vector(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [0.0] * LANES)


@_intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, type_, f"llvm.fma.v{LANES}f32"), arguments)

    return _vector(a, b, c), generate


@type_callable(operator.add)
@type_callable(operator.sub)
@type_callable(operator.mul)
def _type_of_both(context: Any) -> Any:
    return lambda a, b: _vector if isinstance(a, _Vector) and isinstance(b, _Vector) else None


@lower_builtin(operator.add, _Vector, _Vector)
def _add(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.fadd(*arguments)


@lower_builtin(operator.sub, _Vector, _Vector)
def _subtract(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.fsub(*arguments)


@lower_builtin(operator.mul, _Vector, _Vector)
def _multiply(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.fmul(*arguments)
