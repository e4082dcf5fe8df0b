"""The UNet's operations, written down once and then repeated without the modules around them.

They are sorted by what they depend on: the weights alone, the text, the timestep, or the picture.
So the keys and values of a text are worked out once for a run, what comes of a timestep once, and
only the rest at every step. The numbers are the plain path's, up to rounding.
"""

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from minisd import machine
from minisd.attention import Attention

PACKED = {(torch.float32, "cpu"), (torch.bfloat16, "cpu")}
INPUTS = ("picture", "time", "text")
Results = dict[fx.Node, Any]


def dependencies(graph: fx.Graph) -> dict[fx.Node, set[str]]:
    """Which of INPUTS each operation needs, directly or not; none: the weights alone."""
    found: dict[fx.Node, set[str]] = {}
    for node in graph.nodes:
        own = {node.name} & set(INPUTS)
        found[node] = own.union(*(found[one] for one in node.all_input_nodes))
    return found


class Recorder(TorchDispatchMode):
    """Writes down, while it is on, every operation that PyTorch is given, and its operands.

    A tensor that is neither an input nor a result is a weight: it keeps its value.
    """

    def __init__(self, *inputs: Tensor):
        super().__init__()
        self.graph = fx.Graph()
        self.inputs = [self.graph.placeholder(name) for name in INPUTS]
        for node, x in zip(self.inputs, inputs):
            node.meta["size"] = x.shape
        self.nodes = WeakIdKeyDictionary(dict(zip(inputs, self.inputs)))  # of what is alive
        self.weights: Results = {}

    def node_of(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x not in self.nodes:
            self.nodes[x] = node = self.graph.placeholder("weight")
            self.weights[node] = x
        return self.nodes[x]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.is_mutable:
            raise ValueError(f"{function} changes its operand, which cannot be repeated")
        operands = tree_map(self.node_of, (args, kwargs or {}))
        results = function(*args, **(kwargs or {}))
        node = self.graph.call_function(function, *operands)
        several = isinstance(results, tuple | list)
        for i, result in enumerate(results if several else [results]):
            one = self.graph.call_function(getitem, (node, i)) if several else node
            one.meta["size"] = result.shape
            self.nodes[result] = one
        return results


class Part:
    """Some nodes of a graph as a function: of what they read outside, to what is read of them."""

    def __init__(self, chosen: list[fx.Node], wanted: fx.Node):
        self.reads: list[fx.Node] = []
        alone, copies = fx.Graph(), {}

        def copy_of(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = alone.placeholder(node.name)
                self.reads.append(node)
            return copies[node]

        for node in chosen:
            copies[node] = alone.node_copy(node, copy_of)
        inside = set(chosen)
        self.gives = [n for n in chosen if n is wanted or not inside.issuperset(n.users)]
        alone.output(tuple(copies[node] for node in self.gives))
        self.work = fx.GraphModule(nn.Module(), alone).forward

    def __call__(self, known: Results) -> Results:
        return dict(zip(self.gives, self.work(*(known[node] for node in self.reads))))


def pack_convolution(
    weight: Tensor, padding: list[int], stride: list[int], size: torch.Size
) -> Tensor:
    """Weights in the order that oneDNN likes for maps of this size, or each call would make it."""
    order = torch._C._nn.mkldnn_reorder_conv2d_weight
    return order(weight.detach().to_mkldnn(), padding, stride, [1, 1], 1, size)


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """The same for the weights (n, m) of a linear layer, and so many rows of m numbers."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


def instead(node: fx.Node, function: Callable, *operands: Any) -> fx.Node:
    """Put another operation in the place of this one, whose result has the same size."""
    with node.graph.inserting_before(node):
        other = node.graph.call_function(function, operands)
    other.meta = node.meta
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
    return other


def pack_weights(graph: fx.Graph) -> None:
    """Let every convolution and linear layer read packed weights."""
    aten, onednn = torch.ops.aten, torch.ops.mkldnn
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        x, weight, bias, stride, padding, *_ = node.args
        with graph.inserting_before(node):
            how = (weight, padding, stride, x.meta["size"])
            packed = graph.call_function(pack_convolution, how)
        given = (x, packed, bias, padding, stride, [1, 1], 1, "none", [], "")
        instead(node, onednn._convolution_pointwise.default, *given)
    needs = dependencies(graph)
    for target in (aten.mm.default, aten.addmm.default):
        for node in graph.find_nodes(op="call_function", target=target):
            *bias, x, turned = node.args  # x W^T, perhaps with a bias before it
            if turned.target is not aten.t.default or needs[turned]:
                continue
            with graph.inserting_before(node):
                packed = graph.call_function(pack_linear, (*turned.args, x.meta["size"][0]))
            given = (x, packed, *(bias or [None]), "none", [], "")
            instead(node, onednn._linear_pointwise.default, *given)


def packs(network: nn.Module) -> bool:
    """Whether packed weights are to be had, and main memory has room for them beside the others."""
    weights = list(network.parameters())
    kinds = {(p.dtype, p.device.type) for p in weights}
    if not torch.backends.mkldnn.is_available() or len(kinds) > 1 or not kinds <= PACKED:
        return False
    if weights[0].dtype == torch.bfloat16 and not machine.has_bfloat16("cpu"):
        return False
    size = sum(p.numel() * p.element_size() for p in weights)
    free = machine.memory_gib()[1]
    return 1.5 * size < 2**30 * (1.0 if free is None else free)  # one GiB where nobody knows


class Recording:
    """The operations of one call, in parts, and the results of those that hold for longer."""

    def __init__(self, network: nn.Module, x_t: Tensor, t: Tensor, context: Tensor):
        self.packed = packs(network)
        x_t, context = self.arranged(x_t), context.contiguous()
        with Recorder(x_t, t, context) as recorder:
            self.output = recorder.node_of(network._call_impl(x_t, t, context))
        graph, self.inputs = recorder.graph, recorder.inputs
        graph.output(self.output)
        if self.packed:
            pack_weights(graph)
            self.output = graph.output_node().args[0]
        graph.eliminate_dead_code()
        parts: dict[str, list[fx.Node]] = {"weights": [], "time": [], "text": [], "picture": []}
        for node, needs in dependencies(graph).items():
            if node.op == "call_function":
                parts[(needs or {"weights"}).pop() if len(needs) < 2 else "picture"].append(node)
        self.parts = {kind: Part(nodes, self.output) for kind, nodes in parts.items()}
        self.fixed = recorder.weights | self.parts["weights"](recorder.weights)
        self.text: Tensor | None = None
        self.of_text: Results = {}
        self.of_time: dict[float, Results] = {}

    def arranged(self, x_t: Tensor) -> Tensor:
        """Channels last where convolutions are packed: all that follows is quicker so."""
        layout = torch.channels_last if self.packed else torch.contiguous_format
        return x_t.contiguous(memory_format=layout)

    def __call__(self, x_t: Tensor, t: float, context: Tensor) -> Tensor:
        inputs = self.arranged(x_t), torch.tensor(t), context.contiguous()
        known = self.fixed | dict(zip(self.inputs, inputs))
        if self.text is None or not torch.equal(self.text, context):
            self.text = context.clone()  # the caller may change his
            self.of_text = self.parts["text"](known)
        if t not in self.of_time:
            self.of_time[t] = self.parts["time"](known)
        known |= self.of_text | self.of_time[t]
        return self.parts["picture"](known)[self.output].contiguous()


class Replay:
    """Stands in for a UNet's call. What no recording can know of goes the plain way: a record,
    gradients, hooks such as LoRA's, a GPU, a timestep for each picture.

    Changed weights, switches or sizes are noticed, and recorded anew.
    """

    def __init__(self, network: nn.Module):
        self.network, self.modules = network, tuple(network.modules())
        self.attentions = [m for m in self.modules if isinstance(m, Attention)]
        self.state: Any = None
        self.recordings: dict[Any, Recording] = {}

    def __call__(
        self, x_t: Tensor, t: Tensor | float, context: Tensor, record: dict[str, Any] | None = None
    ) -> Tensor:
        """See UNet.forward."""
        single = not isinstance(t, Tensor) or t.ndim == 0
        if record is not None or not single or not self.possible(x_t):
            return self.network._call_impl(x_t, t, context, record)
        if (state := self.current_state()) != self.state:
            self.state, self.recordings = state, {}
        kind = tuple((x.shape, x.dtype) for x in (x_t, context))
        if kind not in self.recordings:
            self.recordings[kind] = Recording(self.network, x_t, torch.tensor(float(t)), context)
        return self.recordings[kind](x_t, float(t), context)

    def possible(self, x_t: Tensor) -> bool:
        modes = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.modules)
        return x_t.device.type == "cpu" and not (modes or hooked)

    def current_state(self) -> tuple[Any, ...]:
        """Where the weights are and how often they were changed; how attention is worked out."""
        weights = [p for m in self.modules for p in m._parameters.values() if p is not None]
        methods = [(layer.method, layer.slice_size) for layer in self.attentions]
        return [(p.data_ptr(), p._version) for p in weights], methods


class Inductor:
    """Stands in for a network's call: torch.compile's, but for a record and for gradients."""

    def __init__(self, network: nn.Module, mode: str | None):
        self.network = network
        self.work = torch.compile(network._call_impl, mode=mode)

    def __call__(self, x: Tensor, *more: Any, record: dict[str, Any] | None = None) -> Tensor:
        """x: (b, c, h, w); more: what the network's forward takes after it."""
        recorded = record is not None or any(isinstance(one, dict) for one in more)
        if recorded or torch.is_grad_enabled():
            named = {} if record is None else {"record": record}
            return self.network._call_impl(x, *more, **named)
        # For a number, such as the timestep, torch.compile would compile every one anew.
        tensors = [torch.as_tensor(one, device=x.device) for one in more if one is not None]
        tensors = [one.float() if one.ndim == 0 else one for one in tensors]
        return self.work(x, *tensors).clone()  # a CUDA graph writes over its last result
