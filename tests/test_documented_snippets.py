"""What one types after reading diffusers' pages on Stable Diffusion runs here as well.

The calls are those of its pages on text to image, schedulers, memory, LoRA, textual inversion and
single files. Only what is on another machine is replaced: the package by ours, hub ids and
addresses by local paths, "cuda" by "cpu".

Not among them, on purpose: image to image and inpainting are methods of the one pipeline here
(pipe.image_to_image, pipe.inpaint), so there are no classes of their own and no AutoPipeline;
schedulers come from a config and not from a folder; a LoRA's scale is set_adapters' and not
cross_attention_kwargs'.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import pipeline

import minisd
import weights_convert
from minisd.lora import adaptable, fresh
from weights_convert.adapters import write_lora

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
HALF = "somebody/only-half-precision"
CHECKPOINT = "https://huggingface.co/somebody/model/blob/main/model.safetensors"
LORAS, CAT, TURN = "somebody/loras", "sd-concepts-library/cat-toy", "./charturner.pt"
DDIM, EULER = "DDIMScheduler", "EulerDiscreteScheduler"
SCHEDULERS = sorted(name for name in minisd.__all__ if name.endswith("Scheduler"))

START = f"""
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{SD15}", use_safetensors=True)
pipe = pipe.to("cuda")
prompt = "a photo of an astronaut riding a horse on mars"
generator = torch.Generator("cuda").manual_seed(0)
"""
DRAW = "image = pipe(prompt, generator=generator).images[0]\n"

# Each ends with `image`, which is that of START + DRAW ("same"), or another ("other").
SNIPPETS = {
    "the first picture": ("same", START + DRAW),
    "half precision": ("close", f"""
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{SD15}", torch_dtype=torch.float16)
pipe = pipe.to("cuda")
prompt = "a photo of an astronaut riding a horse on mars"
image = pipe(prompt, generator=torch.manual_seed(0)).images[0]
image.save("astronaut_rides_horse.png")
"""),
    "the files of half precision": ("close", f"""
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(
    "{HALF}", dtype=torch.float16, variant="fp16", use_safetensors=True
).to("cuda")
assert pipe.dtype == torch.float16
prompt = "a photo of an astronaut riding a horse on mars"
image = pipe(prompt, generator=torch.Generator("cuda").manual_seed(0)).images[0]
"""),
    "without a safety checker": ("same", f"""
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(
    "{SD15}", safety_checker=None, requires_safety_checker=False
)
generator = torch.Generator("cpu").manual_seed(0)
image = pipe("a photo of an astronaut riding a horse on mars", generator=generator).images[0]
"""),
    "a single file": ("same", f"""
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_single_file("{CHECKPOINT}")
pipe.to("cuda")
prompt = "a photo of an astronaut riding a horse on mars"
image = pipe(prompt, generator=torch.Generator("cuda").manual_seed(0)).images[0]
"""),
    "a single file in half precision": ("close", f"""
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_single_file("{CHECKPOINT}", torch_dtype=torch.float16)
pipe.to("cuda")
prompt = "a photo of an astronaut riding a horse on mars"
image = pipe(prompt, generator=torch.Generator("cuda").manual_seed(0)).images[0]
"""),
    "saved and opened again": ("same", START + """
pipe.save_pretrained("./my_pipeline")
pipe = StableDiffusionPipeline.from_pretrained("./my_pipeline")
""" + DRAW),
    "no progress bar": ("same", START + "pipe.set_progress_bar_config(disable=True)\n" + DRAW),
    "steps and guidance": ("other", START + """
image = pipe(prompt, num_inference_steps=3, guidance_scale=3.5, generator=generator).images[0]
"""),
    "a negative prompt": ("other", START + """
image = pipe(
    prompt=prompt, negative_prompt="blurry, ugly, deformed", generator=generator
).images[0]
"""),
    "a size": ("other", START + """
image = pipe(prompt, height=40, width=72, generator=generator).images[0]
assert image.size == (72, 40)
"""),
    "a picture of each seed": ("same", START + """
generator = [torch.Generator("cuda").manual_seed(i) for i in range(3)]
images = pipe(prompt, generator=generator, num_images_per_prompt=3).images
assert len(images) == 3
image = images[0]
"""),
    "several prompts": ("same", START + """
prompts = [prompt, "a red boat"]
negative_prompts = ["", "blurry"]
generator = [generator, torch.Generator("cuda").manual_seed(1)]
image, second = pipe(prompts, negative_prompt=negative_prompts, generator=generator).images
"""),
    "latents of one's own": ("same", START + """
latents = torch.randn((1, pipe.unet.config.in_channels, 8, 8), generator=generator)
image = pipe(prompt, latents=latents).images[0]
"""),
    "latents, then a picture": ("same", START + """
latents = pipe(prompt, generator=generator, output_type="latent").images
with torch.no_grad():
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor)
pixels = (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
from PIL import Image
image = Image.fromarray((pixels * 255).round().astype("uint8"))
"""),
    "arrays and tensors": ("same", START + """
tensor = pipe(prompt, generator=generator, output_type="pt").images
array = pipe(prompt, generator=generator.manual_seed(0), output_type="np").images
assert tuple(tensor.shape) == (1, 3, 64, 64) and array.shape == (1, 64, 64, 3)
from PIL import Image
image = Image.fromarray((array[0] * 255).round().astype("uint8"))
"""),
    "clip skip": ("other", START + """
image = pipe(prompt, generator=generator, clip_skip=1).images[0]
"""),
    "rescaled guidance": ("other", START + """
image = pipe(prompt, generator=generator, guidance_rescale=0.7).images[0]
"""),
    "eta": ("other", START + """
image = pipe(prompt, generator=generator, eta=1.0).images[0]
"""),
    "a callback that looks": ("same", START + """
seen = []

def look(pipe, step_index, timestep, callback_kwargs):
    seen.append((step_index, callback_kwargs["latents"].shape))
    return callback_kwargs

image = pipe(prompt, generator=generator, callback_on_step_end=look).images[0]
assert [index for index, _ in seen] == [0, 1, 2, 3]
"""),
    "a callback that changes the latents": ("other", START + """
def shift(pipe, step_index, timestep, callback_kwargs):
    callback_kwargs["latents"] = callback_kwargs["latents"] + 0.5
    return callback_kwargs

image = pipe(prompt, generator=generator, callback_on_step_end=shift).images[0]
"""),
    # With eta 0, DDIM takes Euler's steps in other variables.
    **{f"scheduler swap, {name}": ("same" if name in (DDIM, EULER) else "other", START + f"""
from diffusers import {name}

pipe.scheduler = {name}.from_config(pipe.scheduler.config)
""" + DRAW) for name in SCHEDULERS},
    "Karras sigmas": ("other", START + """
from diffusers import DPMSolverMultistepScheduler

pipe.scheduler = DPMSolverMultistepScheduler.from_config(
    pipe.scheduler.config, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"
)
assert pipe.scheduler.config.use_karras_sigmas
image = pipe(prompt, num_inference_steps=5, generator=generator).images[0]
"""),
    "trailing timesteps": ("other", START + """
from diffusers import DDIMScheduler

pipe.scheduler = DDIMScheduler.from_config(
    pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing",
    prediction_type="v_prediction",
)
assert pipe.scheduler.alphas_bar[-1] == 0
""" + DRAW),
    "attention slicing": ("same", START + "pipe.enable_attention_slicing()\n" + DRAW),
    "attention slicing, and back": ("same", START + """
pipe.enable_attention_slicing("max")
pipe.disable_attention_slicing()
""" + DRAW),
    "autoencoder slicing": ("same", START + """
pipe.enable_vae_slicing()
generator = [torch.Generator("cuda").manual_seed(i) for i in range(3)]
image = pipe([prompt] * 3, generator=generator).images[0]
pipe.disable_vae_slicing()
"""),
    "autoencoder slicing and tiling by the network's own switches": ("same", START + """
pipe.vae.enable_slicing()
pipe.vae.enable_tiling()
""" + DRAW),
    "autoencoder tiling": ("other", START + """
pipe.enable_vae_tiling()
image = pipe(prompt, height=128, width=96, generator=generator).images[0]
assert image.size == (96, 128)
pipe.disable_vae_tiling()
"""),
    "the memory-efficient kernel": ("same", START + """
pipe.enable_xformers_memory_efficient_attention()
""" + DRAW + "pipe.disable_xformers_memory_efficient_attention()\n"),
    "offloading": ("same", START + "pipe.enable_model_cpu_offload()\n" + DRAW),
    "LoRA": ("other", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
assert pipe.get_active_adapters() == ["toy"]
""" + DRAW),
    "LoRA with a scale": ("other", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
pipe.set_adapters("toy", 0.5)
""" + DRAW),
    "two LoRAs": ("other", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
pipe.load_lora_weights("{LORAS}", weight_name="pixel_art.safetensors", adapter_name="pixel")
pipe.set_adapters(["pixel", "toy"], adapter_weights=[0.5, 1.0])
assert pipe.get_active_adapters() == ["toy", "pixel"]
""" + DRAW),
    "two LoRAs, fused for good": ("other", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
pipe.load_lora_weights("{LORAS}", weight_name="pixel_art.safetensors", adapter_name="pixel")
pipe.set_adapters(["pixel", "toy"], adapter_weights=[0.5, 1.0])
pipe.fuse_lora(lora_scale=0.7)
pipe.unload_lora_weights()
""" + DRAW),
    "a LoRA fused and taken back": ("same", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors")
pipe.fuse_lora()
pipe.unfuse_lora()
pipe.unload_lora_weights()
""" + DRAW),
    "a LoRA disabled": ("same", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
pipe.disable_lora()
""" + DRAW),
    "a LoRA enabled again": ("other", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
pipe.disable_lora()
pipe.enable_lora()
""" + DRAW),
    "a LoRA deleted": ("same", START + f"""
pipe.load_lora_weights("{LORAS}", weight_name="toy_face.safetensors", adapter_name="toy")
pipe.delete_adapters("toy")
""" + DRAW),
    "textual inversion": ("other", START + f"""
pipe.load_textual_inversion("{CAT}")
image = pipe("A <cat-toy> backpack", num_inference_steps=5, generator=generator).images[0]
image.save("cat-backpack.png")
"""),
    "textual inversion of the web UI": ("other", START + f"""
pipe.load_textual_inversion("{TURN}", token="charturner")
image = pipe("charturner, multiple views", generator=generator).images[0]
"""),
    "textual inversion, taken back": ("same", START + f"""
pipe.load_textual_inversion("{CAT}")
pipe.load_textual_inversion("{TURN}", token="charturner")
pipe.unload_textual_inversion("<cat-toy>")
pipe.unload_textual_inversion()
""" + DRAW),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Local stand-ins for what the snippets fetch, all of a tiny random model."""
    root = tmp_path_factory.mktemp("places")
    pipe = pipeline()
    weights_convert.save(pipe, root / "model", layout="diffusers")
    weights_convert.save(pipe, root / "half", layout="diffusers")
    for path in list((root / "half").rglob("*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    weights_convert.save(pipe, root / "model.safetensors", layout="single-file")
    layers = adaptable(pipe.networks)
    for seed, name in enumerate(("toy_face", "pixel_art")):
        generator = torch.Generator().manual_seed(seed)
        loras = fresh(layers, 2, generator)
        for lora in loras.values():
            lora.B.data = torch.randn(lora.B.shape, generator=generator)
        write_lora(loras, pipe.networks, root / "loras" / f"{name}.safetensors")
    (root / "cat").mkdir()
    save_file({"<cat-toy>": torch.randn(1, 24)}, root / "cat" / "learned_embeds.safetensors")
    state = {"string_to_param": {"*": torch.randn(2, 24)}, "name": "turn"}
    torch.save(state, root / "charturner.pt")
    return {SD15: root / "model", HALF: root / "half", CHECKPOINT: root / "model.safetensors",
            LORAS: root / "loras", CAT: root / "cat", TURN: root / "charturner.pt"}  # fmt: skip


def run(code, places):
    """The names that a snippet leaves behind."""
    code = code.replace("from diffusers import", "from minisd import").replace('"cuda"', '"cpu"')
    for theirs, path in places.items():
        code = code.replace(f'"{theirs}"', repr(str(path)))
    names = {}
    exec(compile(code, "<snippet>", "exec"), names)
    return names


@pytest.fixture(scope="module")
def plain(places):
    return np.asarray(run(START + DRAW, places)["image"], dtype=int)


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_documented_snippet_runs(name, places, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relation, code = SNIPPETS[name]
    image = run(code, places)["image"]
    assert isinstance(image, Image.Image)
    image = np.asarray(image, dtype=int)
    assert image.std() > 10
    same = image.shape == plain.shape and np.abs(image - plain).max() <= 1
    close = image.shape == plain.shape and np.abs(image - plain).mean() < 4
    assert {"same": same, "close": close, "other": not same}[relation]


@pytest.mark.parametrize(("call", "error", "message"), [
    ("pipe(prompt, cross_attention_kwargs={'scale': 0.5})", TypeError, "cross_attention_kwargs"),
    ("from diffusers import StableDiffusionImg2ImgPipeline", ImportError, "Img2ImgPipeline"),
    ("from diffusers import AutoPipelineForText2Image", ImportError, "AutoPipeline"),
    ("StableDiffusionPipeline.from_pretrained('x/y', safety_checker=pipe)", ValueError,
     "there is no safety checker here"),
    ("StableDiffusionPipeline.from_pretrained('x/y', revision='fp16')", TypeError, "revision"),
    ("pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler)", ValueError,
     "config is DDIMScheduler, expected a dictionary or a scheduler's config"),
    ("type(pipe.scheduler).from_config(pipe.scheduler.config, use_karras=True)", ValueError,
     r"no scheduler has the settings \['use_karras'\], expected .*'use_karras_sigmas'"),
])  # fmt: skip
def test_what_is_not_here_is_a_clear_error_and_never_ignored(places, call, error, message):
    with pytest.raises(error, match=message):
        run(f"{START}{call}\n", places)
