"""The drawing of one head shows what PyTorch computes for its example, and every share of it in words."""

import re

import torch

from qkrepro.publishing.head_drawing import WORDS, example_head, head_drawing


def test_the_drawn_shares_are_those_of_pytorch() -> None:
    q, k, _ = example_head()
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None, None], k[None], torch.eye(len(WORDS), dtype=q.dtype)[None]
    )[0, 0]
    drawn = [int(share) for share in re.findall(r">(\d+)%</text>", head_drawing())]
    assert drawn == [round(100 * share) for share in expected.tolist()]
    said = re.search(r'aria-label="([^"]+)"', head_drawing())[1]
    assert [int(share) for share in re.findall(r"(\d+)%", said)] == drawn
