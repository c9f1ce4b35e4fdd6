"""Field numbers of the ONNX messages, for what is read of each; everything else is skipped where it lies.

Source: onnx/onnx.in.proto (IR versions 1 to 14).
"""

from ckptkit.format.onnx.wire import (
    BYTES_RUNS,
    DOUBLE_RUNS,
    FLOAT,
    FLOAT_RUNS,
    INT,
    INTS,
    SPAN,
    SPANS,
    TEXT,
    TEXTS,
    VARINT_RUNS,
    schema,
)

MODEL = schema(
    ir_version=(1, INT),
    producer_name=(2, TEXT),
    producer_version=(3, TEXT),
    domain=(4, TEXT),
    model_version=(5, INT),
    graph=(7, SPAN),
    opset_import=(8, SPANS),
    metadata_props=(14, SPANS),
    training_info=(20, SPANS),
    functions=(25, SPANS),
)
OPSET = schema(domain=(1, TEXT), version=(2, INT))
PAIR = schema(key=(1, TEXT), value=(2, TEXT))
TRAINING = schema(initialization=(1, SPAN), algorithm=(2, SPAN))
BINDINGS = schema(initialization_binding=(3, SPANS), update_binding=(4, SPANS))  # of TrainingInfoProto too
GRAPH = schema(
    node=(1, SPANS),
    name=(2, TEXT),
    initializer=(5, SPANS),
    input=(11, SPANS),
    output=(12, SPANS),
    sparse_initializer=(15, SPANS),
)
FUNCTION = schema(
    name=(1, TEXT),
    input=(4, TEXTS),
    output=(5, TEXTS),
    attribute=(6, TEXTS),
    node=(7, SPANS),
    opset_import=(9, SPANS),
    domain=(10, TEXT),
    attribute_proto=(11, SPANS),
    overload=(13, TEXT),
)
NODE = schema(
    input=(1, TEXTS),
    output=(2, TEXTS),
    name=(3, TEXT),
    op_type=(4, TEXT),
    attribute=(5, SPANS),
    domain=(7, TEXT),
    overload=(8, TEXT),
)
ATTRIBUTE = schema(
    name=(1, TEXT),
    f=(2, FLOAT),
    i=(3, INT),
    s=(4, SPAN),
    t=(5, SPAN),
    g=(6, SPAN),
    floats=(7, FLOAT_RUNS),
    ints=(8, VARINT_RUNS),
    strings=(9, BYTES_RUNS),
    tensors=(10, SPANS),
    graphs=(11, SPANS),
    tp=(14, SPAN),
    type_protos=(15, SPANS),
    type=(20, INT),
    ref_attr_name=(21, TEXT),
    sparse_tensor=(22, SPAN),
    sparse_tensors=(23, SPANS),
)
# The integer of a Constant, as a place in the file
CONSTANT_INT = schema(i=(3, VARINT_RUNS))
TENSOR = schema(
    dims=(1, INTS),
    data_type=(2, INT),
    segment=(3, SPAN),
    float_data=(4, FLOAT_RUNS),
    int32_data=(5, VARINT_RUNS),
    string_data=(6, BYTES_RUNS),
    int64_data=(7, VARINT_RUNS),
    name=(8, TEXT),
    raw_data=(9, SPAN),
    double_data=(10, DOUBLE_RUNS),
    uint64_data=(11, VARINT_RUNS),
    external_data=(13, SPANS),
    data_location=(14, INT),
)
SPARSE = schema(values=(1, SPAN), indices=(2, SPAN), dims=(3, INTS))
VALUE = schema(name=(1, TEXT), type=(2, SPAN))
TYPE = schema(
    tensor_type=(1, SPAN),
    sequence_type=(4, SPAN),
    map_type=(5, SPAN),
    sparse_tensor_type=(8, SPAN),
    optional_type=(9, SPAN),
)
ELEMENT_TYPE = schema(elem_type=(1, SPAN))  # of a sequence or an optional
MAP_TYPE = schema(key_type=(1, INT), value_type=(2, SPAN))
TENSOR_TYPE = schema(elem_type=(1, INT), shape=(2, SPAN))
SHAPE = schema(dim=(1, SPANS))
DIMENSION = schema(dim_value=(1, INT), dim_param=(2, TEXT))

# AttributeProto.type → the field that holds the value
ATTRIBUTE_TYPES = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}
