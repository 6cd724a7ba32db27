"""Small good images in every format and kind that is read, made when they are asked for."""

from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin, features

_LOSSLESS = {"lossless": True}


def picture(width: int = 61, height: int = 43, seed: int = 0) -> Image.Image:
    """Smooth colours, an edge and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    smooth = np.stack([x * 200, y * 200, (x + y) * 120], axis=2)
    image = Image.fromarray((smooth + rng.normal(20, 6, smooth.shape)).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((9, 9, 30, 30), fill=(200, 30, 40))
    return image


def _encode(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's word
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description " * 20
    return exif.tobytes()


def _jpegs(image: Image.Image) -> dict[str, bytes]:
    return {
        "jpeg": _encode(image, "JPEG"),
        "jpeg 4:4:4 restarts": _encode(image, "JPEG", subsampling=0, restart_marker_rows=1),
        "jpeg progressive": _encode(image, "JPEG", progressive=True),
        "jpeg grey progressive": _encode(image.convert("L"), "JPEG", progressive=True),
        "jpeg cmyk": _encode(image.convert("CMYK"), "JPEG"),
        "jpeg exif icc": _encode(image, "JPEG", exif=_exif(), icc_profile=b"profile" * 99, comment=b"hello"),
        "jpeg large": _encode(picture(700, 500), "JPEG"),
        "mpo": _encode(image, "MPO", save_all=True, append_images=[image.rotate(90)]),
    }


def _pngs(image: Image.Image) -> dict[str, bytes]:
    grey = image.convert("L")
    alpha = image.copy()
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "text " * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", 'tiff:Orientation="6"')
    modes = {mode: _encode(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB")}
    seeds = {f"png {mode}": file for mode, file in modes.items()}
    return seeds | {
        "png rgba": _encode(alpha, "PNG", exif=_exif(), icc_profile=b"profile" * 99),
        "png 16": _encode(deep, "PNG"),
        "png transparent": _encode(image.quantize(16), "PNG", transparency=bytes(range(16)), bits=4),
        "png text": _encode(image, "PNG", pnginfo=text),
        "apng": _encode(image, "PNG", save_all=True, append_images=[image.rotate(90), image.rotate(180)]),
    }


def _tiffs(image: Image.Image) -> dict[str, bytes]:
    codings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
    seeds = {f"tiff {name}": _encode(image, "TIFF", compression=name) for name in codings}
    fax = {
        f"tiff {name}": _encode(image.convert("1"), "TIFF", compression=name) for name in ("group3", "group4")
    }
    tiled = {322: 16, 323: 16}
    return (seeds | fax) | {
        "tiff cmyk": _encode(image.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff 16": _encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "TIFF"),
        "tiff float": _encode(image.convert("F"), "TIFF"),
        "tiff tiles": _encode(image, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tiled),
        "tiff big": _encode(image, "TIFF", big_tiff=True, exif=_exif()),
        "tiff pages": _encode(image, "TIFF", save_all=True, append_images=[image], compression="tiff_lzw"),
    }


def _others(image: Image.Image) -> dict[str, bytes]:
    small = picture(32, 32)
    grey = image.convert("L")
    alpha = image.copy()
    alpha.putalpha(grey)
    seeds = {
        "gif": _encode(image, "GIF"),
        "gif frames": _encode(
            image, "GIF", save_all=True, append_images=[image.rotate(90)], comment=b"hello"
        ),
        "gif interlaced": _encode(image.quantize(8), "GIF", interlace=True, transparency=3),
        "webp": _encode(image, "WEBP"),
        "webp lossless": _encode(alpha, "WEBP", **_LOSSLESS),
        "webp exif": _encode(image, "WEBP", exif=_exif(), icc_profile=b"profile" * 99),
        "webp frames": _encode(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
        "bmp": _encode(image, "BMP"),
        "bmp palette": _encode(image.quantize(16), "BMP"),
        "bmp 1": _encode(image.convert("1"), "BMP"),
        "bmp rle": _bmp_rle(),
        "j2k": _encode(image, "JPEG2000", no_jp2=True),
        "jp2 tiles": _encode(alpha, "JPEG2000", tile_size=(16, 16), irreversible=True),
        "jp2 grey": _encode(grey, "JPEG2000", num_resolutions=3, codeblock_size=(16, 16)),
        "ico png": _encode(small, "ICO", sizes=[(16, 16), (32, 32)]),
        "ico bmp": _encode(small, "ICO", sizes=[(16, 16), (32, 32)], bitmap_format="bmp"),
        "icns": _encode(small, "ICNS"),
        "ppm": _encode(image, "PPM"),
        "pgm": _encode(grey, "PPM"),
        "pbm": _encode(image.convert("1"), "PPM"),
        "ppm plain": b"P3\n4 3\n255\n" + b"12 200 33 " * 12,
        "pfm": _encode(image.convert("F"), "PPM"),
        "tga": _encode(image, "TGA"),
        "tga rle": _encode(alpha, "TGA", compression="tga_rle"),
        "tga palette": _encode(image.quantize(16), "TGA"),
        "pcx": _encode(image, "PCX"),
        "pcx palette": _encode(image.quantize(16), "PCX"),
        "qoi": _qoi(),
        "dds": _encode(alpha, "DDS"),
        "dds dxt5": _encode(alpha, "DDS", pixel_format="DXT5"),
        "dds bc5": _encode(image, "DDS", pixel_format="BC5"),
        "psd": _psd(0),
        "psd rle": _psd(1),
    }
    if features.check("avif"):
        seeds["avif"] = _encode(image, "AVIF", exif=_exif())
        seeds["avif frames"] = _encode(alpha, "AVIF", save_all=True, append_images=[alpha.rotate(90)])
    return seeds


def _heics(image: Image.Image) -> dict[str, bytes]:
    from pillow_heif import from_pillow

    stream = io.BytesIO()
    from_pillow(image).save(stream, quality=80)
    return {"heic": stream.getvalue()}


def _bmp_rle() -> bytes:
    header = _encode(Image.new("P", (8, 2)), "BMP")[:-16]
    rle = bytes([8, 3, 0, 0, 0, 8, *range(8), 0, 1])
    return header[:30] + (1).to_bytes(4, "little") + header[34:] + rle


def _qoi() -> bytes:
    data = bytes([0xFE, 200, 30, 40, 0xC9, 0x6A, 0xA3, 0x57, 0xFF, 1, 2, 3, 4, 0x15, 0xFD, *[0xC0 + 40] * 40])
    return b"qoif" + (40).to_bytes(4) + (30).to_bytes(4) + b"\x04\x00" + data + b"\0" * 7 + b"\1"


def _psd(compression: int) -> bytes:
    width, height, channels = 9, 7, 3
    header = b"8BPS\0\1" + b"\0" * 6 + channels.to_bytes(2) + height.to_bytes(4) + width.to_bytes(4)
    rows = channels * height
    if compression:
        pixels = (2).to_bytes(2) * rows + bytes([257 - width, 77]) * rows
    else:
        pixels = bytes(range(width)) * rows
    resource = b"8BIM\x04\x04\0\0\0\0\0\2ab"
    sections = b"\0" * 4 + len(resource).to_bytes(4) + resource + b"\0" * 4
    return header + b"\0\x08\0\x03" + sections + compression.to_bytes(2) + pixels


def make_seeds() -> dict[str, bytes]:
    """Return name -> encoded image, in a fixed order."""
    image = picture()
    seeds = _jpegs(image) | _pngs(image) | _tiffs(image) | _others(image)
    return seeds | _heics(image) if find_spec("pillow_heif") else seeds
