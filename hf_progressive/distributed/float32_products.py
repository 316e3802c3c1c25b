"""How a CUDA device computes products of float32 matrices: exactly, or with factors rounded to TF32."""

import contextlib
from collections.abc import Iterator

import torch

_NEWER = "fp32_precision"  # since PyTorch 2.9


@contextlib.contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Round the factors of float32 products to TF32, or do not, for a while."""
    with own_float32_products():
        allow_tf32(tf32)
        yield


@contextlib.contextmanager
def own_float32_products() -> Iterator[None]:
    """Put back, at the end, how float32 products are computed: Trainer's arguments and `allow_tf32` set it for all."""
    if not torch.cuda.is_available():
        yield
        return
    general = getattr(torch.backends, _NEWER, None)
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer of PyTorch's two interfaces, which the older one cannot read
        before = "highest"
    try:
        yield
    finally:
        allow_tf32(before != "highest")
        if general is not None:
            setattr(torch.backends, _NEWER, general)


def allow_tf32(allowed: bool) -> None:
    """Let a CUDA device round the factors of float32 products to TF32, or not.

    Trainer sets it by PyTorch's newer interface, after which PyTorch's compiler raises where it reads the older one
    (https://github.com/pytorch/pytorch/issues/166387): so that is undone, and the older one used.
    """
    if not torch.cuda.is_available():
        return
    if hasattr(torch.backends, _NEWER):
        setattr(torch.backends, _NEWER, "none")
    torch.set_float32_matmul_precision("high" if allowed else "highest")
