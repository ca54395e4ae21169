import pytest
import torch
import torch.nn.functional as F

from tokpipe.models import LinearAttention, make_attn


@pytest.mark.parametrize(("heads", "dim_head"), [(1, 32), (4, 32), (2, 5)])
def test_linear_attention_reads_what_the_keys_gathered(heads: int, dim_head: int) -> None:
    attn, x = LinearAttention(32, heads, dim_head), torch.randn(2, 32, 3, 5)
    assert {key: tuple(value.shape) for key, value in attn.state_dict().items()} == {
        "to_qkv.weight": (3 * heads * dim_head, 32, 1, 1),
        "to_out.weight": (32, heads * dim_head, 1, 1),
        "to_out.bias": (32,),
    }
    with torch.no_grad():
        qkv = F.conv2d(x, attn.to_qkv.weight).view(2, 3, heads, dim_head, 15)
        q, k, v = qkv.unbind(1)
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
        h = torch.einsum("bhde,bhdn->bhen", context, q).reshape(2, heads * dim_head, 3, 5)
        wanted = F.conv2d(h, attn.to_out.weight, attn.to_out.bias)
        torch.testing.assert_close(attn(x), wanted, atol=1e-5, rtol=1e-5)


def test_linear_has_one_head_as_wide_as_its_input() -> None:
    for attn, heads, width in ((make_attn(64, "linear"), 1, 64), (LinearAttention(64), 4, 4 * 32)):
        assert isinstance(attn, LinearAttention)
        assert attn.heads == heads
        assert attn.to_qkv.weight.shape == (3 * width, 64, 1, 1)


def test_unknown_names_are_rejected() -> None:
    for name in ("flash", "memory-efficient-cross-attn"):
        with pytest.raises(ValueError, match=f"attn_type='{name}': use 'vanilla', 'vanilla-xform"):
            make_attn(64, name)
    with pytest.raises(TypeError, match="attn_kwargs"):
        make_attn(64, "vanilla", attn_kwargs={})  # type: ignore[call-arg]


def test_xformers_loads_the_weights_of_vanilla_and_computes_the_same() -> None:
    attn, vanilla, x = make_attn(64, "vanilla-xformers"), make_attn(64), torch.randn(2, 64, 4, 3)
    attn.load_state_dict(vanilla.state_dict())
    assert torch.equal(attn(x), vanilla(x))
