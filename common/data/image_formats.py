"""Image formats that are read, with those that are named and not read."""

import re
from dataclasses import dataclass

HEAD_BYTES = 132  # a DICOM file says so after 128 bytes


@dataclass(frozen=True)
class ImageFormat:
    """Names and signature of an image format that is read.

    The name is Pillow's; suffixes are in lower case, and an exported file without one gets the first. The signature
    matches the first bytes of a file.
    """

    name: str
    suffixes: tuple[str, ...]
    signature: re.Pattern[bytes]


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is not read, with what its holder can do.

    Files of a format `in_tiff` begin like TIFF, and Pillow would decode a preview or far too large an image.
    """

    name: str
    suffixes: tuple[str, ...]
    signature: re.Pattern[bytes] | None
    remedy: str
    in_tiff: bool = False


def _starts(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


IMAGE_FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"), _starts(rb"\xff\xd8\xff")),
    ImageFormat("PNG", (".png", ".apng"), _starts(rb"\x89PNG")),
    ImageFormat("WEBP", (".webp",), _starts(rb"RIFF....WEBP")),
    # "BM" alone begins many a text: the size of the second header follows at byte 14.
    ImageFormat("BMP", (".bmp",), _starts(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0")),
    ImageFormat("TIFF", (".tif", ".tiff"), _starts(rb"II[*+]\0|MM\0[*+]")),
    ImageFormat("GIF", (".gif",), _starts(rb"GIF8[79]a")),
    ImageFormat(
        "JPEG2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        _starts(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ),
    ImageFormat("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), _starts(rb"P[1-6]\s+[#\d]")),
    ImageFormat("AVIF", (".avif",), _starts(rb"....ftypavi[fs]|....ftypm[is]f1.{0,48}avi[fs]")),
)
FORMATS = tuple(row.name for row in IMAGE_FORMATS)
IMAGE_SUFFIXES = tuple(suffix for row in IMAGE_FORMATS for suffix in row.suffixes)
FOREIGN_FORMATS = (
    ForeignFormat(
        "HEIC",
        (".heic", ".heif", ".hif"),
        _starts(rb"....ftyp(hei[cmsx]|hev[cmsx]|m[is]f1)"),
        "convert to JPEG or PNG, such as `heif-convert IN OUT.png`",
    ),
    ForeignFormat(
        "DICOM",
        (".dcm", ".dicom", ".ima"),
        _starts(rb".{128}DICM"),
        "convert to 16-bit PNG, such as `dcmj2pnm +on2 IN OUT.png`",
    ),
    ForeignFormat(
        "camera raw",
        (".cr2", ".cr3", ".nef", ".dng", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf"),
        _starts(rb"II\*\0.{4}CR"),
        "develop to TIFF, PNG or JPEG",
        in_tiff=True,
    ),
    ForeignFormat(
        "whole slide",
        (".svs", ".ndpi", ".scn", ".mrxs", ".vsi"),
        None,
        "cut into tiles of PNG or JPEG",
        in_tiff=True,
    ),
    ForeignFormat("NIfTI", (".nii",), None, "save the slices as PNG"),
    # What stands for a file that is elsewhere, or was left by a download that failed.
    ForeignFormat("Git LFS pointer", (), _starts(rb"version https?://git-lfs"), "`git lfs pull` fetches the file"),
    ForeignFormat("DVC pointer", (".dvc",), None, "`dvc pull` fetches the file"),
    ForeignFormat("iCloud placeholder", (".icloud",), None, "download the file from iCloud first"),
    ForeignFormat("web page", (".html", ".htm"), _starts(rb"(?i)\s*<(!doctype )?html"), "download the file again"),
    ForeignFormat(
        "archive",
        (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
        None,
        "unpack it and name its folder",
    ),
    ForeignFormat(
        "IDX arrays",
        (".idx",),
        # Three zero bytes would also begin other files, so type and number of axes must fit.
        _starts(rb"\0\0[\x08\x09\x0b-\x0e][\x01-\x04]\0"),
        "MNIST's four files are read by data.source=mnist and data.path; save others as PNG",
    ),
    ForeignFormat(
        "arrays",
        (".npy", ".npz", ".mat", ".h5", ".hdf5", ".tfrecord", ".tfrecords"),
        None,
        "save each image as PNG, in one folder per class",
    ),
)


def format_of(head: bytes) -> ImageFormat | None:
    """Return the readable format that a file's first bytes belong to."""
    return None if foreign_of("", head) else next((row for row in IMAGE_FORMATS if row.signature.match(head)), None)


def foreign_of(suffix: str, head: bytes) -> ForeignFormat | None:
    """Return the format of a file that is named and not read.

    The content decides. The suffix decides where the content is of no known format or begins like TIFF.
    """
    for row in FOREIGN_FORMATS:
        if row.signature is not None and row.signature.match(head) and not _is_avif(head):
            return row
    named = next((row for row in FOREIGN_FORMATS if suffix in row.suffixes), None)
    read = next((row.name for row in IMAGE_FORMATS if row.signature.match(head)), None)
    return named if read is None or (read == "TIFF" and named is not None and named.in_tiff) else None


def _is_avif(head: bytes) -> bool:
    return next(row for row in IMAGE_FORMATS if row.name == "AVIF").signature.match(head) is not None
