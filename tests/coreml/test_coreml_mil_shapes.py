"""The same for operations that cut, move, resize and gather values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_mil import IMAGE, RNG, ROWS, UPDATES, WHOLE, Case, X, assert_closed_form, t
from coreml_models import built
from torch.nn import functional as F

from edgedistill.coreml import Evaluator, load

PLACES = np.array([2, 0], np.int32)


def grid(size: int, count: int, mode: str) -> np.ndarray:
    """Sampling points, as the documentation of resize_bilinear words them."""
    i = np.arange(count)
    if mode == "DEFAULT":
        points = i * (size - size / count) / (count - 1)
    elif mode == "OFFSET_CORNERS":
        points = 0.5 * max(1, size - 1) / count + i * max(1, size - 1) / count
    elif mode == "UNALIGN_CORNERS":
        points = i * size / count + 0.5 * size / count - 0.5
    else:
        points = i * (size - 1) / (count - 1)
    return np.minimum(size - 1, np.maximum(0, points))


def resized(x: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    rows = np.stack([np.apply_along_axis(lambda v: np.interp(grid(len(v), height, mode), range(len(v)), v), -2, x)])[0]
    return np.apply_along_axis(lambda v: np.interp(grid(len(v), width, mode), range(len(v)), v), -1, rows)


def scattered(mode: str) -> np.ndarray:
    data = ROWS.copy()
    for row, place in enumerate(PLACES):
        old, new = data[place], UPDATES[row]
        data[place] = {
            "update": new,
            "add": old + new,
            "sub": old - new,
            "mul": old * new,
            "div": old / new,
            "max": np.maximum(old, new),
            "min": np.minimum(old, new),
        }[mode]
    return data


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    return np.stack([x[:, i : i + size] for i in range(0, x.shape[1] - size + 1, stride)], 1)


ALIGN = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")
SHAPES: dict[str, Case] = {
    # shapes
    "concat_interleaved": (
        lambda mb, v: mb.concat(values=[v["rows"], mb.mul(x=v["rows"], y=2.0)], axis=0, interleave=True),
        lambda: np.stack([ROWS, 2 * ROWS], 1).reshape(8, 3),
    ),
    "flatten2d": (lambda mb, v: mb.flatten2d(x=v["x"], axis=2), lambda: X.reshape(12, 5)),
    "reshape_zero": (lambda mb, v: mb.reshape(x=v["x"], shape=[0, 15, 2]), lambda: X.reshape(2, 15, 2)),
    "shape": (lambda mb, v: mb.shape(x=v["x"]), lambda: np.array([2, 6, 5])),
    "slice_backwards": (
        lambda mb, v: mb.slice_by_index(
            x=v["x"], begin=[0, 4, -1], end=[2, 0, 0], stride=[1, -2, -1], end_mask=[False, False, True]
        ),
        lambda: X[0:2, 4:0:-2, ::-1],
    ),
    "slice_masked": (
        lambda mb, v: mb.slice_by_index(
            x=v["x"],
            begin=[1, 3, 2],
            end=[1, 4, 3],
            begin_mask=[True, True, False],
            end_mask=[True, False, False],
        ),
        lambda: X[:, :4, 2:3],
    ),
    "slice_squeezed": (
        lambda mb, v: mb.slice_by_index(x=v["x"], begin=[1, 1, -2], end=[0, 6, 0], squeeze_mask=[True, False, True]),
        lambda: X[1, 1:6, -2],
    ),
    "slice_by_size": (
        lambda mb, v: mb.slice_by_size(x=v["x"], begin=[0, 1, 2], size=[-1, 3, 2]),
        lambda: X[:, 1:4, 2:4],
    ),
    "sliding_windows": (
        lambda mb, v: mb.sliding_windows(x=v["x"], axis=1, size=3, stride=2),
        lambda: windows(X, 3, 2),
    ),
    "split_equal": (lambda mb, v: mb.split(x=v["x"], num_splits=3, axis=1)[1], lambda: X[:, 2:4]),
    "band_part": (
        lambda mb, v: mb.band_part(x=v["x"], lower=1, upper=2),
        lambda: np.triu(np.tril(X, 2), -1),
    ),
    # space
    "batch_to_space": (
        lambda mb, v: mb.batch_to_space(
            x=mb.space_to_batch(x=v["image"], block_shape=[2, 2], paddings=[[1, 1], [0, 2]]),
            block_shape=[2, 2],
            crops=[[1, 1], [0, 2]],
        ),
        lambda: IMAGE,
    ),
    "space_to_batch": (
        lambda mb, v: mb.space_to_batch(x=v["image"], block_shape=[2, 2], paddings=[[0, 0], [0, 0]]),
        lambda: np.concatenate([IMAGE[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]),
    ),
    "space_to_depth": (
        lambda mb, v: mb.space_to_depth(x=v["image"], block_size=2),
        lambda: np.concatenate([IMAGE[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
    ),
    "depth_to_space": (
        lambda mb, v: mb.depth_to_space(x=mb.space_to_depth(x=v["image"], block_size=2), block_size=2),
        lambda: IMAGE,
    ),
    "crop": (
        lambda mb, v: mb.crop(x=v["image"], crop_height=[1, 2], crop_width=[0, 1]),
        lambda: IMAGE[..., 1:4, :3],
    ),
    "pad_reflect": (
        lambda mb, v: mb.pad(x=v["x"], pad=[2, 1, 0, 3], mode="reflect"),
        lambda: np.pad(X, ((0, 0), (2, 1), (0, 3)), mode="reflect"),
    ),
    "pad_constant_first_axis": (
        lambda mb, v: mb.pad(x=v["x"], pad=[1, 0, 0, 2, 3, 4], mode="constant", constant_val=0.5),
        lambda: np.pad(X, ((1, 0), (0, 2), (3, 4)), constant_values=0.5),
    ),
    "resize_nearest": (
        lambda mb, v: mb.resize_nearest_neighbor(x=v["image"], target_size_height=9, target_size_width=2),
        lambda: F.interpolate(t(IMAGE), (9, 2), mode="nearest").numpy(),
    ),
    "upsample_bilinear_quarter": (
        lambda mb, v: mb.upsample_bilinear(
            x=v["image"], scale_factor_height=1.5, scale_factor_width=2.0, align_corners=False, half_pixel_centers=False
        ),
        lambda: resized(IMAGE, 9, 8, "DEFAULT"),
    ),
    **{
        f"resize_bilinear_{mode}": (
            lambda mb, v, mode=mode: mb.resize_bilinear(
                x=v["image"], target_size_height=9, target_size_width=3, sampling_mode=mode
            ),
            lambda mode=mode: resized(IMAGE, 9, 3, mode),
        )
        for mode in ALIGN
    },
    "resize": (
        lambda mb, v: mb.resize(
            x=v["image"],
            shape=np.array([9, 0], np.int32),
            resized_dims=np.uint32(2),
            interpolation_mode="LINEAR",
            sampling_mode="UNALIGN_CORNERS",
        ),
        lambda: resized(IMAGE, 9, 4, "UNALIGN_CORNERS"),
    ),
    # places
    "fill": (lambda mb, v: mb.fill(shape=mb.shape(x=v["x"]), value=0.5), lambda: np.full(X.shape, 0.5)),
    "gather_batched": (
        lambda mb, v: mb.gather(x=v["x"], indices=np.array([[3, 0], [5, 5]], np.int32), axis=1, batch_dims=1),
        lambda: np.stack([X[0, [3, 0]], X[1, [5, 5]]]),
    ),
    "gather_last_axis": (
        lambda mb, v: mb.gather(x=v["x"], indices=np.array([[3, 0]], np.int32), axis=-1),
        lambda: X[..., np.array([[3, 0]])],
    ),
    "gather_nd_batched": (
        lambda mb, v: mb.gather_nd(x=v["x"], indices=np.array([[[3, 1]], [[5, 4]]], np.int32), batch_dims=1),
        lambda: np.array([[X[0, 3, 1]], [X[1, 5, 4]]]),
    ),
    "non_zero": (
        lambda mb, v: mb.non_zero(x=v["whole"]),
        lambda: np.stack(np.nonzero(WHOLE), 1),
    ),
    "one_hot_first": (
        lambda mb, v: mb.one_hot(
            indices=mb.abs(x=v["whole"]), one_hot_vector_size=9, axis=0, on_value=2.0, off_value=-1.0
        ),
        lambda: np.where(np.abs(WHOLE)[None] == np.arange(9)[:, None, None], 2.0, -1.0),
    ),
    "range_1d": (
        lambda mb, v: mb.range_1d(
            start=np.int32(1),
            end=mb.squeeze(x=mb.slice_by_size(x=mb.shape(x=v["x"]), begin=[1], size=[1]), axes=[0]),
            step=np.int32(2),
        ),
        lambda: np.arange(1, 6, 2),
    ),
    **{
        f"scatter_{mode}": (
            lambda mb, v, mode=mode: mb.scatter(data=v["rows"], indices=PLACES, updates=UPDATES, axis=0, mode=mode),
            lambda mode=mode: scattered(mode),
        )
        for mode in ("update", "add", "sub", "mul", "div", "max", "min")
    },
    "scatter_columns": (
        lambda mb, v: mb.scatter(
            data=v["rows"], indices=np.array([1], np.int32), updates=np.zeros((4, 1), np.float32), axis=1, mode="update"
        ),
        lambda: ROWS * [1, 0, 1],
    ),
    "scatter_nd_elements": (
        lambda mb, v: mb.scatter_nd(
            data=v["rows"],
            indices=np.array([[0, 1], [3, 2]], np.int32),
            updates=np.array([5.0, 6.0], np.float32),
            mode="add",
        ),
        lambda: ROWS + np.array([[0, 5, 0], [0, 0, 0], [0, 0, 0], [0, 0, 6]]),
    ),
    "slice_update": (
        lambda mb, v: mb.slice_update(
            x=v["x"], update=np.ones((2, 2, 5), np.float32), begin=[0, 1, 0], end=[2, 5, 5], stride=[1, 2, 1]
        ),
        lambda: np.where((np.arange(6) % 4 % 2 == 1)[:, None] & (np.arange(6) < 5)[:, None], 1, X),
    ),
    "identity": (lambda mb, v: mb.identity(x=v["x"]), lambda: X),
    "einsum": (
        lambda mb, v: mb.einsum(values=(v["x"], mb.transpose(x=v["x"], perm=[2, 1, 0])), equation="chw,whr->chr"),
        lambda: np.einsum("chw,whr->chr", X, X.transpose(2, 1, 0)),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_operation_on_shapes_or_places_gives_its_closed_form(name: str, tmp_path: Path) -> None:
    assert_closed_form(SHAPES[name], tmp_path)


def test_a_shape_taken_from_other_tensors(tmp_path: Path) -> None:
    def make(mb: Any, v: dict[str, Any]) -> Any:
        return mb.reshape_like(
            x=v["x"], ref_tensors=(v["rows"], v["x"]), begins=(1, 0), ends=(2, 0), end_masks=(False, True)
        )

    x = {"x": X, "rows": RNG.uniform(-1, 1, (7, 1)).astype(np.float32)}
    (got,) = Evaluator(load(built(make, x, tmp_path / "l.mlpackage", target="iOS17")), "fp32").predict(x).values()
    assert np.array_equal(got, X[None])


def test_below_ios_17_an_index_may_count_from_the_end(tmp_path: Path) -> None:
    feeds = {"rows": ROWS, "at": np.array([-1, 0], np.int32)}

    def make(mb: Any, v: dict[str, Any]) -> Any:
        return mb.gather(x=v["rows"], indices=v["at"], axis=0)

    (got,) = (
        Evaluator(load(built(make, feeds, tmp_path / "g.mlpackage", target="iOS16")), "fp32").predict(feeds).values()
    )
    assert np.array_equal(got, ROWS[[-1, 0]])
