"""Words for TIFF files whose bit depth or layout is not read."""

from typing import IO, Any

_BITS, _KIND, _SIZE = 258, 339, (256, 257)
_KINDS = {2: "signed whole numbers", 3: "floating point", 5: "complex whole numbers", 6: "complex floating point"}
_READ_BITS = (1, 2, 4, 8, 12, 16)
_REMEDY = "save it as gray or RGB with 8 or 16 bits"


def layout_reason(stream: IO[bytes]) -> str:
    """Return why a TIFF file with a sound header is not read.

    It is empty where the header is damaged, so that nothing can be said of the layout.
    """
    tags = _tags(stream)
    if any(tag not in tags for tag in _SIZE):
        return ""
    bits, kind = tuple(tags.get(_BITS, (1,))), next(iter(tags.get(_KIND, (1,))))
    shown = "/".join(map(str, dict.fromkeys(bits)))
    scale = ", its values scaled to 0..65,535" if kind > 2 or max(bits) > 16 else ""
    if kind == 1 and set(bits) <= {*_READ_BITS}:
        channels = f"{len(bits)} channel{'s' if len(bits) > 1 else ''} of {shown} bits"
        return f"TIFF of {channels} in a layout that is not read: {_REMEDY}"
    return (
        f"TIFF of {shown} bits per channel ({_KINDS.get(kind, 'whole numbers')}), which is not read: {_REMEDY}{scale}"
    )


def _tags(stream: IO[bytes]) -> Any:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        stream.seek(0)
        head = stream.read(8)
        # The header of a BigTIFF is twice as long.
        found = ImageFileDirectory_v2(head + stream.read(8) if 43 in head[2:4] else head)
        stream.seek(found.next)
        found.load(stream)
        return dict(found)
    # The file is hostile or damaged, which its reason then says.
    except Exception:
        return {}
