"""The one table of element types: canonical name, width, and the spelling in each format.

Sources: torch 2.13 (`torch.dtype`, storage classes in pickles), safetensors 0.8 (`Dtype`),
onnx 1.23 (`TensorProto.DataType`), ml_dtypes 0.6. Shapes count elements everywhere, also for types
narrower than a byte; such elements are packed lowest bits first and the last byte is padded with zeros.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "int", "uint", "bool", "complex", "quantized", "bits", "string"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: canonical name, numpy/torch style (`float32`, `bfloat16`, `float8_e4m3fn`, `int4`).
        bits: width of one element; 0 for `string`, whose elements vary.
        kind: what the bits mean.
        torch: name of the `torch.dtype`, or None.
        storage: prefix of torch's typed storage class (`Float` for `FloatStorage`); None where torch
            pickles the type over an untyped storage (`_rebuild_tensor_v3`) or not at all.
        safetensors: spelling in a safetensors header, or None.
        onnx: `TensorProto.DataType` number, or None.
        numpy: name of the numpy or ml_dtypes type that holds one element, or None.
        parts: bytes of the unit that byte order applies to (a complex number has two of them).
    """

    name: str
    bits: int
    kind: Kind
    torch: str | None = None
    storage: str | None = None
    safetensors: str | None = None
    onnx: int | None = None
    numpy: str | None = None

    @property
    def parts(self) -> int:
        width = max(1, self.bits // 8)
        return width // 2 if self.kind == "complex" else width

    def nbytes(self, count: int) -> int:
        """Bytes of `count` packed elements."""
        return (count * self.bits + 7) // 8

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return dtype, (self.name,)


# fmt: off
_TABLE = (
    #     name               bits kind         torch               storage          safetensors    onnx  numpy
    DType("float64",          64, "float",     "float64",          "Double",        "F64",         11,   "float64"),
    DType("float32",          32, "float",     "float32",          "Float",         "F32",         1,    "float32"),
    DType("float16",          16, "float",     "float16",          "Half",          "F16",         10,   "float16"),
    DType("bfloat16",         16, "float",     "bfloat16",         "BFloat16",      "BF16",        16,   "bfloat16"),
    DType("float8_e4m3fn",    8,  "float",     "float8_e4m3fn",    None,            "F8_E4M3",     17,   "float8_e4m3fn"),
    DType("float8_e5m2",      8,  "float",     "float8_e5m2",      None,            "F8_E5M2",     19,   "float8_e5m2"),
    DType("float8_e4m3fnuz",  8,  "float",     "float8_e4m3fnuz",  None,            "F8_E4M3FNUZ", 18,   "float8_e4m3fnuz"),
    DType("float8_e5m2fnuz",  8,  "float",     "float8_e5m2fnuz",  None,            "F8_E5M2FNUZ", 20,   "float8_e5m2fnuz"),
    DType("float8_e8m0fnu",   8,  "float",     "float8_e8m0fnu",   None,            "F8_E8M0",     24,   "float8_e8m0fnu"),
    DType("float6_e2m3fn",    6,  "float",     None,               None,            "F6_E2M3",     27,   "float6_e2m3fn"),
    DType("float6_e3m2fn",    6,  "float",     None,               None,            "F6_E3M2",     28,   "float6_e3m2fn"),
    DType("float4_e2m1fn",    4,  "float",     "float4_e2m1fn_x2", None,            "F4",          23,   "float4_e2m1fn"),
    DType("int64",            64, "int",       "int64",            "Long",          "I64",         7,    "int64"),
    DType("int32",            32, "int",       "int32",            "Int",           "I32",         6,    "int32"),
    DType("int16",            16, "int",       "int16",            "Short",         "I16",         5,    "int16"),
    DType("int8",             8,  "int",       "int8",             "Char",          "I8",          3,    "int8"),
    DType("int4",             4,  "int",       None,               None,            None,          22,   "int4"),
    DType("int2",             2,  "int",       None,               None,            None,          26,   "int2"),
    DType("uint64",           64, "uint",      "uint64",           None,            "U64",         13,   "uint64"),
    DType("uint32",           32, "uint",      "uint32",           None,            "U32",         12,   "uint32"),
    DType("uint16",           16, "uint",      "uint16",           None,            "U16",         4,    "uint16"),
    DType("uint8",            8,  "uint",      "uint8",            "Byte",          "U8",          2,    "uint8"),
    DType("uint4",            4,  "uint",      None,               None,            None,          21,   "uint4"),
    DType("uint2",            2,  "uint",      None,               None,            None,          25,   "uint2"),
    DType("bool",             8,  "bool",      "bool",             "Bool",          "BOOL",        9,    "bool"),
    DType("complex128",       128, "complex",  "complex128",       "ComplexDouble", None,          15,   "complex128"),
    DType("complex64",        64, "complex",   "complex64",        "ComplexFloat",  "C64",         14,   "complex64"),
    DType("complex32",        32, "complex",   "complex32",        None,            None,          None, None),
    DType("qint32",           32, "quantized", "qint32",           "QInt32",        None,          None, "int32"),
    DType("qint8",            8,  "quantized", "qint8",            "QInt8",         None,          None, "int8"),
    DType("quint8",           8,  "quantized", "quint8",           "QUInt8",        None,          None, "uint8"),
    DType("quint4x2",         4,  "quantized", "quint4x2",         "QUInt4x2",      None,          None, "uint4"),
    DType("quint2x4",         2,  "quantized", "quint2x4",         "QUInt2x4",      None,          None, "uint2"),
    DType("bits16",           16, "bits",      "bits16",           None,            None,          None, "uint16"),
    DType("bits8",            8,  "bits",      "bits8",            None,            None,          None, "uint8"),
    DType("bits1x8",          8,  "bits",      "bits1x8",          None,            None,          None, "uint8"),
    DType("bits2x4",          8,  "bits",      "bits2x4",          None,            None,          None, "uint8"),
    DType("bits4x2",          8,  "bits",      "bits4x2",          None,            None,          None, "uint8"),
    DType("string",           0,  "string",    None,               None,            None,          8,    None),
)
# fmt: on

DTYPES: dict[str, DType] = {d.name: d for d in _TABLE}
BY_TORCH: dict[str, DType] = {d.torch: d for d in _TABLE if d.torch}
BY_STORAGE: dict[str, DType] = {d.storage: d for d in _TABLE if d.storage}
BY_SAFETENSORS: dict[str, DType] = {d.safetensors: d for d in _TABLE if d.safetensors}
BY_ONNX: dict[int, DType] = {d.onnx: d for d in _TABLE if d.onnx is not None}


def dtype(name: str) -> DType:
    """The element type of that canonical name. Raises KeyError for any other name."""
    return DTYPES[name]
