"""Memory of float16 and bfloat16 on hardware: words of two numbers, widened to float32 and rounded to nearest even.

bfloat16 is the upper half of a float32: widened by shift and mask. float16 has its own conversion. Either way one
instruction rounds and packs two numbers. The memory's type is uint16, so that no arithmetic is done in it by mistake.
"""

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

SHORT, WORD, FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
PACKED = {"float16": "f16x2", "bfloat16": "bf16x2"}


def half_access(name):
    """-> (get, put): one element of a pointer to uint16, as float32."""

    @intrinsic
    def get(typing_context, memory, i):
        def emit(context, builder, signature, values):
            bits = builder.load(builder.gep(values[0], [values[1]]), align=2)
            return _widened(builder, name, builder.zext(bits, WORD))[0]

        return types.float32(memory, types.int64), emit

    @intrinsic
    def put(typing_context, memory, i, value):
        def emit(context, builder, signature, values):
            bits = builder.trunc(_packed(builder, name, values[2], ir.Constant(FLOAT, 0.0)), SHORT)
            builder.store(bits, builder.gep(values[0], [values[1]]), align=2)
            return context.get_dummy_value()

        return types.void(memory, types.int64, types.float32), emit

    return get, put


def half_vectors(name, width):
    """-> (load, store): move `width` elements of a pointer to uint16, from index i, to and from float32 local[at:].

    width * 2 bytes are one access: 16 of them LDG.E.128 or STG.E.128, and the address is a multiple of them."""
    if width == 1:
        return _singles(name)
    words = ir.VectorType(WORD, width // 2)

    @intrinsic
    def load(typing_context, memory, i, local, at):
        def emit(context, builder, signature, values):
            vector = builder.load(_words_at(builder, words, *values[:2]), align=2 * width)
            slots = _slots(context, builder, signature.args[2], *values[2:], width)
            for k in range(width // 2):
                pair = _widened(builder, name, builder.extract_element(vector, ir.Constant(WORD, k)))
                for value, slot in zip(pair, slots[2 * k :], strict=False):
                    builder.store(value, slot)
            return context.get_dummy_value()

        return types.void(memory, types.int64, local, types.int64), emit

    @intrinsic
    def store(typing_context, memory, i, local, at):
        def emit(context, builder, signature, values):
            numbers = [builder.load(s) for s in _slots(context, builder, signature.args[2], *values[2:], width)]
            vector = ir.Constant(words, ir.Undefined)
            for k in range(width // 2):
                word = _packed(builder, name, *numbers[2 * k : 2 * k + 2])
                vector = builder.insert_element(vector, word, ir.Constant(WORD, k))
            builder.store(vector, _words_at(builder, words, *values[:2]), align=2 * width)
            return context.get_dummy_value()

        return types.void(memory, types.int64, local, types.int64), emit

    return load, store


def _singles(name):
    from .intrinsics_hardware import device

    get, put = half_access(name)

    @device
    def load(memory, i, local, at):
        local[at] = get(memory, i)

    @device
    def store(memory, i, local, at):
        put(memory, i, local[at])

    return load, store


def _words_at(builder, words, memory, i):
    return builder.bitcast(builder.gep(memory, [i]), words.as_pointer(memory.type.addrspace))


def _slots(context, builder, kind, local, at, width):
    """Pointers to local[at : at + width]."""
    data = builder.gep(context.make_array(kind)(context, builder, value=local).data, [at])
    return [builder.gep(data, [ir.Constant(WORD, k)]) for k in range(width)]


def _widened(builder, name, word):
    """The two numbers of a word, the lower first."""
    if name == "bfloat16":
        halves = builder.shl(word, ir.Constant(WORD, 16)), builder.and_(word, ir.Constant(WORD, 0xFFFF0000))
        return [builder.bitcast(h, FLOAT) for h in halves]
    shorts = builder.trunc(word, SHORT), builder.trunc(builder.lshr(word, ir.Constant(WORD, 16)), SHORT)
    return [builder.fpext(builder.bitcast(s, ir.HalfType()), FLOAT) for s in shorts]


def _packed(builder, name, low, high):
    """The word of two numbers, each rounded to nearest even; on from sm_80."""
    kind = ir.FunctionType(WORD, [FLOAT, FLOAT])
    code = f"cvt.rn.{PACKED[name]}.f32 $0, $1, $2;"
    return builder.call(ir.InlineAsm(kind, code, "=r,f,f", side_effect=False), [high, low])
