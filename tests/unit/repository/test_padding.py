from __future__ import annotations

import pytest

from tensorferry.model import PaddingSpec
from tensorferry.repository import read_model
from tensorferry.wire.model_config_pb2 import BatchInput

HEAD = "max_batch_size: 8\n"
X = 'input { name: "x" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }\n'
Y = 'output { name: "y" data_type: TYPE_FP32 dims: -1 }\n'
Z = 'output { name: "z" data_type: TYPE_FP32 dims: 2 }\n'
LENGTHS = (
    "batch_input { kind: BATCH_ELEMENT_COUNT"
    ' target_name: "lengths" data_type: TYPE_INT32 source_input: "x" }\n'
)
CUT = 'batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }\n'


def parameter(name, value):
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


BUCKETS = parameter("ragged_buckets", "16,32,64")
#: Five lines, so that what a test adds begins on line 6.
RAGGED = HEAD + X + Y + Z + BUCKETS


def test_ragged_input_is_padded_to_buckets(spec):
    assert spec(RAGGED).padding == PaddingSpec(inputs=("x",), outputs=(), buckets=(16, 32, 64))


def test_nothing_is_padded_unless_an_input_says_so(spec):
    config = RAGGED.replace("allow_ragged_batch: true", "allow_ragged_batch: false").replace(BUCKETS, "")
    assert spec(config).padding is None


def test_lengths_input_and_cut_outputs_are_read_and_given_back(read):
    model = read(RAGGED + LENGTHS + CUT + parameter("ragged_pad_value", "-1.5"))
    assert model.error is None
    (found,) = model.versions
    assert found.padding == PaddingSpec(
        inputs=("x",),
        outputs=("y",),
        buckets=(16, 32, 64),
        pad_value=-1.5,
        lengths_input="lengths",
        lengths_datatype="INT32",
    )
    assert [each.name for each in found.inputs] == ["x"]
    (lengths,), (cut,) = model.config.batch_input, model.config.batch_output
    assert (lengths.kind, list(lengths.target_name), list(lengths.source_input)) == (0, ["lengths"], ["x"])
    assert (list(cut.target_name), list(cut.source_input)) == (["y"], ["x"])
    assert model.config.input[0].allow_ragged_batch
    assert model.config.parameters["ragged_buckets"].string_value == "16,32,64"


def test_yaml_says_the_same(read, tmp_path):
    from_pbtxt = read(RAGGED + LENGTHS + CUT)
    (tmp_path / "fraud" / "config.pbtxt").unlink()
    (tmp_path / "fraud" / "config.yaml").write_text("""
max_batch_size: 8
input: [{name: x, data_type: TYPE_FP32, dims: [-1], allow_ragged_batch: true}]
output:
- {name: y, data_type: TYPE_FP32, dims: [-1]}
- {name: z, data_type: TYPE_FP32, dims: [2]}
parameters: {ragged_buckets: "16,32,64"}
batch_input:
- {kind: BATCH_ELEMENT_COUNT, target_name: [lengths], data_type: TYPE_INT32, source_input: [x]}
batch_output:
- {target_name: [y], kind: BATCH_SCATTER_WITH_INPUT_SHAPE, source_input: [x]}
""")
    assert from_pbtxt.error is None
    assert read_model(tmp_path / "fraud") == from_pbtxt


def test_kind_of_a_batch_input_may_be_left_out(spec):
    padding = spec(RAGGED + LENGTHS.replace("kind: BATCH_ELEMENT_COUNT", "")).padding
    assert padding is not None
    assert padding.lengths_input == "lengths"


@pytest.mark.parametrize("name", ["INT32", "INT64", "FP32"])
def test_lengths_are_of_the_declared_datatype(spec, name):
    padding = spec(RAGGED + LENGTHS.replace("TYPE_INT32", f"TYPE_{name}")).padding
    assert padding is not None
    assert padding.lengths_datatype == name


def test_several_tensors_are_padded_and_the_others_are_left_alone(spec):
    config = (
        HEAD
        + 'input { name: "a" data_type: TYPE_INT64 dims: [ 2, -1, 3 ] allow_ragged_batch: true }\n'
        + 'input { name: "free" data_type: TYPE_FP32 dims: [ -1, -1 ] }\n'
        + X
        + Z
        + Y
        + 'output { name: "w" data_type: TYPE_FP32 dims: [ 4, -1 ] }\n'
        + BUCKETS
        + 'batch_output { target_name: [ "w", "y" ] source_input: "a" }'
    )
    padding = spec(config).padding
    assert padding is not None
    assert padding.inputs == ("a", "x")
    assert padding.outputs == ("y", "w"), "the order of the model's outputs"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", (7,)),
        (" 1 , 2 ", (1, 2)),
        ("16777216", (2**24,)),
        (",".join(map(str, range(1, 257))), tuple(range(1, 257))),
    ],
)
def test_buckets_are_read(spec, value, expected):
    padding = spec(HEAD + X + Y + parameter("ragged_buckets", value)).padding
    assert padding is not None
    assert padding.buckets == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(
            (value, "1 to 256 integers from 1 to 16777216 with commas between")
            for value in ("", ",", "16,", "16,,32", "0", "-1", "1.5", "16;32", "16777217", "nan", "16, x",
                          "٣", ",".join(map(str, range(1, 258))))
        ),
        ("32,16", "ascending, each length once"),
        ("16,16", "ascending, each length once"),
        ("1,3,2", "ascending, each length once"),
    ],
)  # fmt: skip
def test_buckets_that_cannot_be_are_refused_at_their_line(refusal, value, expected):
    message = refusal(HEAD + X + Y + parameter("ragged_buckets", value))
    assert message.startswith("config.pbtxt:4: the parameter ragged_buckets is ")
    assert f"it must be {expected}" in message


@pytest.mark.parametrize("value", ["1", "63", "64"])
def test_longest_request_that_the_buckets_cover_is_taken(spec, value):
    assert spec(RAGGED + parameter("ragged_max_length", value)).padding is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("65", "at most 64, the last of ragged_buckets, as a longer request is refused; add a bucket"),
        ("16777216", "at most 64, the last of ragged_buckets"),
        ("0", "an integer from 1 to 16777216"),
        ("-1", "an integer from 1 to 16777216"),
        ("many", "an integer from 1 to 16777216"),
    ],
)
def test_buckets_that_do_not_cover_the_longest_request_are_refused(refusal, value, expected):
    message = refusal(RAGGED + parameter("ragged_max_length", value))
    assert message.startswith(
        f"config.pbtxt:6: the parameter ragged_max_length is {value!r}; it must be {expected}"
    )


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", "0"), ("FP32", "-3.4e38"), ("FP16", "65504"), ("BF16", "-1e38"), ("FP64", "1e300"),
        ("INT64", "-9223372036854775808"), ("INT8", "-128"), ("UINT8", "255"), ("INT32", "1e3"),
        ("BOOL", "1"),
    ],
)  # fmt: skip
def test_pad_value_that_the_datatype_holds_is_taken(spec, datatype, value):
    padding = spec(
        RAGGED.replace("TYPE_FP32", f"TYPE_{datatype}", 1) + parameter("ragged_pad_value", value)
    ).padding
    assert padding is not None
    assert padding.pad_value == float(value)


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        *(("FP32", value, "a finite number") for value in ("nan", "inf", "1e999", "zero", "", "1_0")),
        ("FP32", "1e39", "from -3.40282e+38 to 3.40282e+38, as a ragged input is FP32"),
        ("FP16", "65505", "from -65504 to 65504, as a ragged input is FP16"),
        ("BF16", "3.4e38", "from -3.38953e+38 to 3.38953e+38"),
        ("INT64", "0.5", "an integer from -9223372036854775808 to 9223372036854775807, as a ragged input"),
        ("INT64", "9223372036854775808", "an integer from -9223372036854775808 to"),
        ("INT64", "9007199254740993", "an integer that FP64 holds exactly; the nearest is 9007199254740992"),
        ("UINT8", "-1", "an integer from 0 to 255, as a ragged input is UINT8"),
        ("INT8", "128", "an integer from -128 to 127"),
        ("BOOL", "2", "an integer from 0 to 1"),
    ],
)
def test_pad_value_that_the_datatype_cannot_hold_is_refused(refusal, datatype, value, expected):
    config = RAGGED.replace("TYPE_FP32", f"TYPE_{datatype}", 1) + parameter("ragged_pad_value", value)
    message = refusal(config)
    assert message.startswith(
        f"config.pbtxt:6: the parameter ragged_pad_value is {value!r}; it must be {expected}"
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (HEAD + X + Y, "2: input 'x' says allow_ragged_batch, which needs the parameter ragged_buckets"),
        (X + Y + BUCKETS, "1: allow_ragged_batch needs a max_batch_size above 0"),
        (
            RAGGED.replace("dims: -1 allow", "dims: 30 allow"),
            "2: input 'x' says allow_ragged_batch, which needs exactly one -1 in dims, and they are [30]",
        ),
        (
            RAGGED.replace("dims: -1 allow", "dims: [ -1, 4, -1 ] allow"),
            "2: input 'x' says allow_ragged_batch, which needs exactly one -1 in dims,"
            " and they are [-1, 4, -1]",
        ),
        (
            RAGGED.replace("dims: -1 allow", "allow"),
            "2: input 'x' says allow_ragged_batch, which needs exactly one -1 in dims, and they are []",
        ),
        (
            RAGGED + 'model_warmup { name: "w" inputs { key: "x"\n'
            " value { data_type: TYPE_FP32 dims: 65 zero_data: true } } }",
            "7: 'x' of warm-up 'w' has the length 65, and the last of ragged_buckets is 64",
        ),
    ],
)
def test_ragged_input_that_cannot_be_padded_is_refused_at_its_line(refusal, config, expected):
    assert refusal(config).startswith(f"config.pbtxt:{expected}")


def test_warmup_of_unlike_lengths_is_refused_at_its_line(refusal):
    samples = [
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_FP32\n dims: {length} zero_data: true }} }}'
        for name, length in (("x", 3), ("b", 4))
    ]
    config = RAGGED + X.replace('"x"', '"b"') + f'model_warmup {{ name: "w" {" ".join(samples)} }}'
    message = refusal(config)
    assert message.startswith(
        "config.pbtxt:9: 'b' of warm-up 'w' has the length 4, and 'x' has 3; the lengths"
    )


def test_warmup_of_the_longest_bucket_is_taken(spec):
    sample = "value { data_type: TYPE_FP32 dims: 64 zero_data: true }"
    (warmup,) = spec(RAGGED + f'model_warmup {{ inputs {{ key: "x" {sample} }} }}').warmups
    assert warmup.inputs[0][0].dims == (64,)


@pytest.mark.parametrize("kind", BatchInput.Kind.keys()[1:])
def test_other_kinds_of_batch_inputs_are_refused_with_what_is_supported(refusal, kind):
    message = refusal(RAGGED + "batch_input {\n" + f'kind: {kind} target_name: "n" source_input: "x" }}')
    assert message.startswith("config.pbtxt:7: only the kind BATCH_ELEMENT_COUNT is supported in batch_input")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (LENGTHS.replace("BATCH_ELEMENT_COUNT", "9"), "6: only the kind BATCH_ELEMENT_COUNT is supported"),
        (
            LENGTHS.replace("BATCH_ELEMENT_COUNT", "LENGTHS"),
            "6: no such value as 'LENGTHS'; one of BATCH_ELEMENT_COUNT, BATCH_ACCUMULATED_ELEMENT_COUNT",
        ),
        (LENGTHS + LENGTHS, "7: there are 2 batch_input; only one is supported"),
        (LENGTHS.replace('target_name: "lengths"', ""), "6: batch_input needs one target_name"),
        (LENGTHS.replace('"lengths"', '""'), "6: batch_input needs one target_name"),
        (LENGTHS.replace('"lengths"', '[ "a", "b" ]'), "6: batch_input needs one target_name"),
        (
            LENGTHS.replace('"lengths"', '"x"'),
            "6: batch_input fills in 'x', which is an input that callers send, too; remove it from input",
        ),
        *(
            (
                LENGTHS.replace("data_type: TYPE_INT32", written),
                "6: the data_type of batch_input 'lengths' must be one of TYPE_INT32, TYPE_INT64, TYPE_FP32",
            )
            for written in ("", "data_type: TYPE_BOOL", "data_type: TYPE_FP16", "data_type: 99")
        ),
        (LENGTHS.replace('source_input: "x"', ""), "6: batch_input needs one source_input that"),
        (LENGTHS.replace('source_input: "x"', 'source_input: "z"'), "6: batch_input needs one source_input"),
        (LENGTHS.replace('source_input: "x"', 'source_input: [ "x", "x" ]'), "6: batch_input needs one"),
        (CUT.replace("BATCH_SCATTER_WITH_INPUT_SHAPE", "1"), "6: only the kind BATCH_SCATTER_WITH_INPUT"),
        (CUT.replace('target_name: "y"', ""), "6: batch_output has no target_name"),
        (
            CUT.replace('"y"', '"yy"'),
            "6: batch_output names 'yy', which is no output of the model; did you mean 'y'?",
        ),
        (CUT.replace('"y"', '"x"'), "6: batch_output names 'x', which is no output of the model"),
        (CUT.replace('"y"', '[ "y",\n"y" ]'), "7: batch_output names 'y' twice"),
        (CUT + CUT, "7: batch_output names 'y' twice"),
        (
            CUT.replace('"y"', '"z"'),
            "6: batch_output cuts back 'z', which needs exactly one -1 in dims, and they are [2]",
        ),
        (CUT.replace('source_input: "x"', ""), "6: batch_output needs one source_input that says"),
        (CUT.replace('source_input: "x"', 'source_input: "q"'), "6: batch_output needs one source_input"),
    ],
)  # fmt: skip
def test_batch_tensor_that_cannot_be_is_refused_at_its_line(refusal, more, expected):
    assert refusal(RAGGED + more).startswith(f"config.pbtxt:{expected}")


@pytest.mark.parametrize(("more", "field"), [(LENGTHS, "batch_input"), (CUT, "batch_output")])
def test_batch_tensor_without_padding_is_refused(refusal, more, field):
    message = refusal(HEAD + X.replace("allow_ragged_batch: true", "") + Y + more)
    assert message.startswith(
        f"config.pbtxt:4: {field} is for padded batches, and no input says allow_ragged"
    )
