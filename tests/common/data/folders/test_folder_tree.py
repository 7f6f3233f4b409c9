"""Files that are told apart by their names beside others: masks of images, and what stands for a file elsewhere."""

from pathlib import Path

import pytest

from tests.support.data.folders import counts_of, open_at, write_folder


@pytest.mark.parametrize(
    ("listed", "cats", "masks"),
    [
        ("cat/a.png cat/a_mask.png", 1, 1),
        ("cat/benign (1).png|cat/benign (1)_mask.png|cat/benign (1)_mask_1.png", 1, 2),
        ("cat/a.jpg cat/a_segmentation.png", 1, 1),
        ("cat/a.jpg cat/a-seg.png cat/a.gt.png", 1, 2),
        ("cat/a.jpg cat/aMask.png", 1, 1),
        ("cat/a.jpg cat/a_groundtruth.PNG", 1, 1),
        # Without the image that it would be a mask of, a file is an image.
        ("cat/mask.png cat/gas_mask.png", 2, 0),
        ("cat/a_mask.png cat/b.png", 2, 0),
        ("cat/a.png cat/more/a_mask.png", 2, 0),
        ("cat/1.png cat/1_2.png", 2, 0),
        ("cat/a.png cat/a_mask.txt", 1, 0),
    ],
)
def test_masks_of_images_beside_them_are_not_images_and_are_counted(
    tmp_path: Path, listed: str, cats: int, masks: int
) -> None:
    for item in listed.split("|") if "|" in listed else listed.split():
        (tmp_path / item).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / item).write_bytes(b"looks like an image")
    write_folder(tmp_path, "dog*1")

    source = open_at(tmp_path)

    assert counts_of(source) == ({"cat": cats, "dog": 1}, {})
    assert (f"masks of images beside them {masks}" in "".join(source.remarks())) == bool(masks)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".1.jpg.icloud", "iCloud placeholder 1 (download the file from iCloud first)"),
        ("1.jpg.dvc", "DVC pointer 1 (`dvc pull` fetches the file)"),
        ("more.zip", "archive 1 (unpack it and name its folder)"),
        ("more.tar.gz", "archive 1 (unpack it"),
        ("images.npy", "arrays 1 (save each image as PNG"),
        ("index.html", "web page 1"),
        ("IMG_1.THM", ".thm 1"),
        ("0.lrprev", ".lrprev 1"),
        ("._1.jpg", ""),
        (".DS_Store", ""),
    ],
)
def test_files_that_stand_for_images_elsewhere_are_named_with_their_remedy(
    tmp_path: Path, name: str, said: str
) -> None:
    write_folder(tmp_path, f"cat*1 dog*1 cat/{name}")

    lines = open_at(tmp_path).remarks()

    assert said in "".join(lines)
    assert bool(lines) == bool(said)
