"""Classes that the names of loose files tell."""

import re
from pathlib import Path

import pytest

from common.data.folders.name_labels import advice_on_names
from common.errors import DataError
from tests.support.data.folders import open_at, write_folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cat.0.jpg cat.1.jpg dog.0.jpg dog.1.jpg", "named after cat, dog: .* rows such as cat.0.jpg,cat below"),
        ("cat_001.png cat_002.png dog_001.png dog_002.png", "named after cat, dog"),
        ("cat1.png cat2.png dog1.png dog2.png", "named after cat, dog"),
        ("0001_cat.png 0002_cat.png 0003_dog.png 0004_dog.png", "named after cat, dog"),
        ("great_ape_1.png great_ape_2.png dog-1.png dog-2.png", "named after dog, great_ape"),
        ("cat (1).png|cat (2).png|dog (1).png|dog (2).png", "named after cat, dog"),
        ("IMG_0001.jpg IMG_0002.jpg IMG_0003.jpg", ""),
        ("1.png 2.png 3.png", ""),
        ("a1.png b2.png c3.png", ""),
        ("cat.png dog.png", ""),
    ],
)
def test_names_of_files_tell_classes_only_where_each_has_several(names: str, said: str) -> None:
    files = [Path(name) for name in (names.split("|") if "|" in names else names.split())]

    advice = advice_on_names(files)

    assert re.search(said, advice)
    assert bool(advice) == bool(said)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("cat.0.png cat.1.png dog.0.png dog.1.png", "the files are named after cat, dog"),
        ("train/cat.0.png train/cat.1.png train/dog.0.png train/dog.1.png test1/1.png", "named after cat, dog"),
        ("train/cat.0.png train/cat.1.png train/dog.0.png train/dog.1.png test/1.png", "named after cat, dog"),
        ("0.png 1.png", "if these images are of one class, name the folder above"),
    ],
)
def test_a_refusal_of_loose_images_says_what_their_names_tell(tmp_path: Path, listed: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_at(write_folder(tmp_path, listed))
