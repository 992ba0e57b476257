"""The largest tensor that a computation makes: what must never be formed is never formed."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made; views of `given` are not made."""

    elements = 0

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {t.untyped_storage().data_ptr() for t in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(t.numel() for t in made if isinstance(t, Tensor) and self.is_new(t))])
        return result

    def is_new(self, t: Tensor) -> bool:
        return not self.given or t.untyped_storage().data_ptr() not in self.given
