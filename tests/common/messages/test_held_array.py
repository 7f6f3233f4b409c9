"""Arrays that are encoded only when somebody asks: the same bytes as Flower's own, shared without copies."""

import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common.errors import FederationError
from common.messages.checks import check_tensor
from common.messages.codec import arrays_to_record, record_to_arrays
from common.messages.held_array import HeldArray, content_bytes
from common.messages.serialization import digest_of, pack

VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.zeros((0, 5), dtype=np.int8),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(10, dtype=np.float32)[::2],
    np.zeros((2,) * 20 + (0,), dtype=np.uint8),
    np.array(2.5, dtype=np.float32),
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: f"{values.dtype}{values.shape[:3]}")
def test_bytes_are_those_of_flowers_array(values: np.ndarray) -> None:
    plain, held = Array(np.asarray(values, order="C")), HeldArray(values)

    assert held.num_bytes == len(plain.data)
    assert (held.dtype, held.shape, held.stype, held.data) == (plain.dtype, plain.shape, plain.stype, plain.data)
    assert held.deflate() == plain.deflate()
    assert held.object_id == plain.object_id


def test_it_equals_flowers_array_of_the_same_bytes() -> None:
    values = np.array([1.0, np.nan], dtype=np.float32)
    held, plain = HeldArray(values), Array(values)

    for same in (plain, HeldArray(values.copy())):
        assert held == same
        assert same == held
        assert (held != same) is False
    others = values[::-1], values.astype(np.float64), values.reshape(1, 2), values.astype(">f4")
    for other in others:
        assert held != HeldArray(other)
        assert Array(np.ascontiguousarray(other)) != held
    assert held != values.tobytes()
    assert ArrayRecord({"w": held}) == ArrayRecord({"w": plain})
    with pytest.raises(TypeError, match="unhashable"):
        hash(held)


@pytest.mark.parametrize("name", ["dtype", "shape", "stype", "data", "values"])
def test_what_its_values_say_cannot_be_set(name: str) -> None:
    held = HeldArray(VALUES[0])
    before = getattr(held, name)

    with pytest.raises(AttributeError, match=f"{name} of a held array cannot be set"):
        setattr(held, name, "other")

    assert getattr(held, name) is before
    assert held == Array(VALUES[0])


def content_of(record: ArrayRecord) -> RecordDict:
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 3})})


def test_a_message_is_digested_stored_and_counted_like_flowers() -> None:
    arrays = {"w": VALUES[0], "b": VALUES[3]}
    held = content_of(arrays_to_record(arrays))
    plain = content_of(ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}))

    size = content_bytes(held)

    assert not any("_data" in vars(array) for array in held.array_records["arrays"].values()), "counting encoded it"
    assert size == sum(record.count_bytes() for record in plain.values()) == content_bytes(plain)
    assert digest_of(held) == digest_of(plain)
    assert pack(held) == pack(plain)


def test_a_message_arrives_over_flowers_transport_and_in_another_process() -> None:
    content = content_of(arrays_to_record({"w": VALUES[0]}))
    objects = {key: item.deflate() for key, item in get_all_nested_objects(content).items()}

    travelled = inflate_object_from_contents(content.object_id, objects)
    pickled = pickle.loads(pickle.dumps(content))  # noqa: S301

    for arrived in (travelled, pickled):
        assert isinstance(arrived, RecordDict)
        array = arrived.array_records["arrays"]["w"]
        assert type(array) is Array
        assert np.array_equal(array.numpy(), VALUES[0])


def test_receivers_share_the_values_and_cannot_write_to_them() -> None:
    values = np.ones((2, 3), dtype=np.float32)
    record = arrays_to_record({"w": values})

    received = record_to_arrays(record)["w"]

    assert np.shares_memory(received, values)
    with pytest.raises(ValueError, match="read-only"):
        received += 1
    # Flower's QFedAvg writes to what `numpy` returns.
    record["w"].numpy()[:] = 7
    assert (values == 1).all()


@pytest.mark.parametrize("values", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.int64)], ids=["shape", "type"])
def test_held_values_of_another_shape_or_type_are_refused(values: np.ndarray) -> None:
    check_tensor(HeldArray(np.zeros((2, 3), np.float32)), (2, 3))

    with pytest.raises(FederationError, match="another type or shape"):
        check_tensor(HeldArray(values), (2, 3))
