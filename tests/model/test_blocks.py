import pytest
import torch

from scotopia.graph.errors import InputError
from scotopia.model.blocks import to_cells, to_pixels


def test_a_cell_holds_its_pixels_row_by_row() -> None:
    pixels = torch.arange(24.0).reshape(1, 4, 6)
    cells = to_cells(pixels, 2)
    assert cells.shape == (4, 2, 3)
    assert cells[:, 1, 2].tolist() == [16, 17, 22, 23]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_to_pixels_undoes_to_cells(block: int) -> None:
    pixels = torch.rand(2, 5, 1, 6, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_pixels(to_cells(pixels, block), block), pixels)


def test_frames_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        to_cells(torch.zeros(1, 4, 6), 4)
    assert str(caught.value) == (
        "frames of 6 x 4 pixels do not divide into cells of 4 x 4: "
        "choose sides that are multiples of 4"
    )
