"""One walk over the architecture, three names for every module.

Each walk yields (ours, diffusers, CompVis) module paths; ".weight" and ".bias" are the same in
all three. One tensor stays one tensor, so that converting is a dictionary lookup, and back.
`python -m weights_convert.names` prints the whole table for Stable Diffusion 1.5.
"""

from collections.abc import Iterator

from minisd.config import SD15, AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig

Names = tuple[str, str, str]  # ours, diffusers, CompVis
OURS, DIFFUSERS, COMPVIS = range(3)
PREFIXES = {  # of each network's keys in a CompVis single file
    "text_encoder": "cond_stage_model.transformer.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}


def same(*names: str) -> list[Names]:
    """Modules that everybody calls the same."""
    return [(name, name, name) for name in names]


def under(parent: Names, children: list[Names]) -> Iterator[Names]:
    for child in children:
        yield tuple(f"{above}.{below}" for above, below in zip(parent, child))


def unet_resnet(parent: Names, shortcut: bool) -> Iterator[Names]:
    inside = [("norm1", "norm1", "in_layers.0"), ("conv1", "conv1", "in_layers.2")]
    inside += [("norm2", "norm2", "out_layers.0"), ("conv2", "conv2", "out_layers.3")]
    inside += [("shortcut", "conv_shortcut", "skip_connection")] * shortcut
    yield from under(parent, [*inside, ("time_proj", "time_emb_proj", "emb_layers.1")])


def transformer(parent: Names) -> Iterator[Names]:
    inside = [*same("norm1", "norm2", "norm3"), ("ff.down", "ff.net.2", "ff.net.2")]
    inside.append(("ff.gate_up", "ff.net.0.proj", "ff.net.0.proj"))
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            inside.append((f"{ours}.{a}", f"{theirs}.{b}", f"{theirs}.{b}"))
    block = ("block", "transformer_blocks.0", "transformer_blocks.0")
    yield from under(parent, same("norm", "proj_in", "proj_out") + list(under(block, inside)))


def unet(config: UNetConfig) -> Iterator[Names]:
    """Every module of the UNet that holds weights."""
    yield "time_embed.fc1", "time_embedding.linear_1", "time_embed.0"
    yield "time_embed.fc2", "time_embedding.linear_2", "time_embed.2"
    yield "conv_in", "conv_in", "input_blocks.0.0"
    yield from unet_down(config)
    yield from unet_resnet(("mid.resnet1", "mid_block.resnets.0", "middle_block.0"), False)
    yield from transformer(("mid.attention", "mid_block.attentions.0", "middle_block.1"))
    yield from unet_resnet(("mid.resnet2", "mid_block.resnets.1", "middle_block.2"), False)
    yield from unet_up(config)
    yield "norm_out", "conv_norm_out", "out.0"
    yield "conv_out", "conv_out", "out.2"


def unet_blocks(
    side: str, i: int, flat: range, shortcuts: set[int], attention: bool
) -> Iterator[Names]:
    """The blocks of one resolution; CompVis numbers them flat, through all resolutions."""
    way = {"input": "down", "output": "up"}[side]
    for j, number in enumerate(flat):
        resnet = (f"{way}.{i}.resnets.{j}", f"{way}_blocks.{i}.resnets.{j}")
        yield from unet_resnet((*resnet, f"{side}_blocks.{number}.0"), j in shortcuts)
        if attention:
            attentions = (f"{way}.{i}.attentions.{j}", f"{way}_blocks.{i}.attentions.{j}")
            yield from transformer((*attentions, f"{side}_blocks.{number}.1"))


def unet_down(config: UNetConfig) -> Iterator[Names]:
    widths, depth = config.widths, config.layers_per_level
    for i, width in enumerate(widths):
        end = (i + 1) * (depth + 1)  # block 0 is conv_in, and each downsample counts
        shortcuts = {0} if width != widths[max(i - 1, 0)] else set()
        yield from unet_blocks("input", i, range(end - depth, end), shortcuts, config.attention[i])
        if i < len(widths) - 1:
            theirs = f"down_blocks.{i}.downsamplers.0.conv"
            yield f"down.{i}.downsample", theirs, f"input_blocks.{end}.0.op"


def unet_up(config: UNetConfig) -> Iterator[Names]:
    depth = config.layers_per_level + 1
    for i, attention in enumerate(reversed(config.attention)):
        flat = range(i * depth, (i + 1) * depth)
        yield from unet_blocks("output", i, flat, set(range(depth)), attention)
        if i < len(config.widths) - 1:  # in CompVis a part of the resolution's last block
            place = f"output_blocks.{flat[-1]}.{2 if attention else 1}.conv"
            yield f"up.{i}.upsample", f"up_blocks.{i}.upsamplers.0.conv", place


def vae_resnet(parent: Names, shortcut: bool) -> Iterator[Names]:
    optional = [("shortcut", "conv_shortcut", "nin_shortcut")] * shortcut
    yield from under(parent, same("norm1", "conv1", "norm2", "conv2") + optional)


def vae_mid(half: str) -> Iterator[Names]:
    mid = (f"{half}.mid", f"{half}.mid_block", f"{half}.mid")
    for j in (1, 2):
        resnet = vae_resnet((f"resnet{j}", f"resnets.{j - 1}", f"block_{j}"), shortcut=False)
        yield from under(mid, list(resnet))
    attention = [("norm", "group_norm", "norm"), ("out", "to_out.0", "proj_out")]
    attention += [(name, f"to_{name}", name) for name in "qkv"]
    yield from under(mid, list(under(("attention", "attentions.0", "attn_1"), attention)))


def autoencoder(config: AutoencoderConfig) -> Iterator[Names]:
    """Every module of the autoencoder that holds weights."""
    depth, last = config.layers_per_level, len(config.widths) - 1
    for half, way, extra in (("encoder", "down", 0), ("decoder", "up", 1)):
        widths = config.widths if half == "encoder" else config.widths[::-1]
        ends = [*same("conv_in", "conv_out"), ("norm_out", "conv_norm_out", "norm_out")]
        yield from under((half, half, half), ends)
        yield from vae_mid(half)
        for i, width in enumerate(widths):
            # CompVis counts the levels of its decoder backwards.
            place = f"{half}.{way}.{i if half == 'encoder' else last - i}"
            level = (f"{half}.{way}.{i}", f"{half}.{way}_blocks.{i}", place)
            for j in range(depth + extra):
                resnet = (f"resnets.{j}", f"resnets.{j}", f"block.{j}")
                shortcut = j == 0 and width != widths[max(i - 1, 0)]
                yield from under(level, list(vae_resnet(resnet, shortcut)))
            if i < last:
                resize = f"{way}sample"
                yield from under(level, [(resize, f"{resize}rs.0.conv", f"{resize}.conv")])
    yield from same("quant_conv", "post_quant_conv")


def text_encoder(config: TextEncoderConfig) -> Iterator[Names]:
    """Every module of the text encoder that holds weights."""
    inside = [("norm1", "layer_norm1"), ("norm2", "layer_norm2")]
    inside += [("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]
    inside += [(f"attn.{a}", f"self_attn.{a}_proj") for a in ("q", "k", "v", "out")]
    pairs = [(f"{a}_embedding", f"embeddings.{a}_embedding") for a in ("token", "position")]
    for i in range(config.layers):
        pairs += [(f"layers.{i}.{a}", f"encoder.layers.{i}.{b}") for a, b in inside]
    for ours, theirs in [*pairs, ("final_norm", "final_layer_norm")]:
        yield ours, f"text_model.{theirs}", f"text_model.{theirs}"


WALKS = {"text_encoder": text_encoder, "unet": unet, "vae": autoencoder}


def table(network: str, config: object, source: int, target: int) -> dict[str, str]:
    """Module names of one dialect (OURS, DIFFUSERS, COMPVIS) to those of another."""
    return {names[source]: names[target] for names in WALKS[network](config)}


def rename(key: str, modules: dict[str, str]) -> str:
    """A tensor's name in the other dialect; a name that is not in the table stays as it is."""
    module, dot, leaf = key.rpartition(".")
    return modules.get(module, module) + dot + leaf


def markdown(model: ModelConfig = SD15) -> str:
    """All names, as one table for each network."""
    lines = []
    for network, walk in WALKS.items():
        rows = list(walk(getattr(model, network)))
        lines += [f"## {network}: {len(rows)} modules", ""]
        lines += [f"A CompVis single file has `{PREFIXES[network]}` before each of its names.", ""]
        lines += ["| minisd | diffusers | CompVis |", "|---|---|---|"]
        lines += ["| " + " | ".join(f"`{name}`" for name in names) + " |" for names in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
