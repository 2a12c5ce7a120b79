"""ArrayRecords of models in any floating-point type: Flower's own constructor refuses torch's bfloat16.

ArrayRecord(net.state_dict())     ->     array_record(net.state_dict())
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord

from compeft_proto.round_task import numpy_of


def array_record(state: Mapping[str, Any]) -> ArrayRecord:
    """Tensors or arrays by name as an ArrayRecord; bfloat16 becomes float32, which is exact and which `load_state_dict` takes back."""
    return ArrayRecord({name: Array(numpy_of(tensor)) for name, tensor in state.items()})
