"""Host values arrive on the device as they are, by name."""

import numpy as np
import torch

from pipeline.transfer import to_device, values_to_device

CPU = torch.device("cpu")


def test_all_kinds_of_arrays_arrive_in_one_block() -> None:
    values = {
        "coefficients": np.linspace(0, 1, 5),
        "boxes": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::-1],
        "flip": np.array([True, False, True]),
        "alpha": np.array(0.25),
        "positions": np.arange(7),
        "none": np.empty((0, 4), np.int32),
    }
    found = values_to_device(values, CPU)
    assert list(found) == list(values)
    for name, value in values.items():
        expected = value.astype(np.float32) if value.dtype.kind == "f" else value
        assert found[name].dtype == torch.from_numpy(expected.copy()).dtype
        assert found[name].is_contiguous()
        assert found[name].data_ptr() % 4 == 0
        np.testing.assert_array_equal(found[name].numpy(), expected)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
    values["coefficients"][:] = 7  # a plan is reused; what is on its way must not change with it
    assert found["coefficients"][0] == 0


def test_nothing_to_send_is_fine() -> None:
    assert values_to_device({}, CPU) == {}


def test_on_the_cpu_a_tensor_stays_where_it_is() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU).data_ptr() == tensor.data_ptr()
