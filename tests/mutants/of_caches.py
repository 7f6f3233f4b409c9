"""Keys of caches that lack one of their parts."""

from functools import partial

import common.data.scan as scanning
from common.data import preprocessing
from common.data.inputs import input_format
from common.data.inputs.scaled_copies import ScaledCopies
from common.data.partitioning import assignment
from common.data.sources import base_source
from common.data.tones import row_names
from common.ledger import image_index
from common.ledger.holder_keys import HolderKeys
from common.models import backbone_info
from common.models.engines import feature_engine
from common.privacy import accounting, calibration
from common.system.content_store import ContentStore
from common.system.figure_cache import FigureCache
from tests.common.data import test_input_keys as inputs
from tests.common.data.inputs import test_scaled_copies as copies
from tests.common.data.partitioning import test_assignment as partitions
from tests.common.ledger import test_image_index as contents
from tests.common.ledger import test_signed_heads as keys
from tests.common.models.engines import test_feature_engine as engines
from tests.common.privacy import test_figure_keys as figures
from tests.common.system import test_content_store as stores
from tests.mutants.faults import every_case, planted
from tests.support.ledger.builders import KEYS, holding

_FEATURES, _FACTS = input_format.features_format, inputs.test_feature_key_changes_with_every_fact_about_the_backbone
planted(
    _FACTS,
    _FEATURES,
    {
        "a feature key without the weights": ("info.sha256, *scaling", "*scaling"),
        "a feature key without the mean": ("info.mean, ", ""),
        "a feature key without the deviation": ("info.std, ", ""),
        "a feature key without the side": ("(info.image_size, info.mean", "(info.mean"),
        "a feature key without the interpolation": ("info.std, info.interpolation)", "info.std)"),
        "a feature key without the engine": ("device, info.engine)", "device)"),
        "a feature key of the first digits of the weights": ("info.sha256, *", "info.sha256[:0], *"),
    },
)

planted(
    copies.test_an_image_that_finds_no_room_is_not_scaled,
    ScaledCopies.offer,
    {"images that are scaled in vain": ("if copy > self._room or digest in self._taken:", "if digest in self._taken:")},
)
planted(
    copies.test_an_image_that_is_smaller_than_its_copy_is_kept_as_it_is,
    ScaledCopies.offer,
    {
        "room for the copies of small images": ("if copy * least >= own:", "if copy * least == own:"),
    },
)
planted(
    every_case(copies.test_a_copy_that_was_scaled_by_a_wrong_guess_is_not_used),
    ScaledCopies.serves,
    {"copies of any format": (" and self._kept[digest][1] in (None, _scaling_of(wanted))", "")},
)
_CHOICES = inputs.test_feature_key_changes_with_backbone_head_device_and_format
planted(
    _CHOICES,
    _FEATURES,
    {
        "a feature key without the head": ("model.head, model.backbone", "model.backbone"),
        "a feature key without the backbone": ("model.backbone, device", "device"),
        "a feature key without the device": ("model.backbone, device", "model.backbone"),
        "a feature key without the format": ('FORMAT, "features"', '"features"'),
    },
)

_PIXELS = inputs.test_pixel_key_changes_with_side_channels_interpolation_and_format
planted(
    _PIXELS,
    input_format.pixels_format,
    {
        "a pixel key without the side": ('"pixels", side, ', '"pixels", '),
        "a pixel key without the channels": ("side, channels, inter", "side, inter"),
        "a pixel key without the interpolation": ("channels, interpolation)\n    r", "channels)\n    r"),
    },
)
planted(
    _PIXELS,
    input_format._key,
    {
        "a key whose parts run together": ("repr(list(parts))", '"".join(map(str, parts))'),
    },
)

_PREPARED = inputs.test_prepared_key_changes_with_the_content_and_the_class_list
planted(
    _PREPARED,
    preprocessing.content_key,
    {
        "a content key without the class list": ("\\x1f{scan.classes}", ""),
        "a content key without the content": ("{scan.fingerprint}\\x1f", ""),
    },
)

_SHOWN = every_case(inputs.test_name_of_an_input_changes_with_every_tone_that_shows_something_else)
planted(_SHOWN, row_names.row_names, {"an input named without its tones": ("repr(tones).encode() + ", "")})
planted(
    _SHOWN,
    row_names.is_shown_otherwise,
    {
        "inputs of all depths in one place": ("deep & (tones.bit_depth < FULL_DEPTH or window)", "deep & window"),
        "inputs of all windows in one place": ("(channels == 1) & window", "False"),
        "a window of scans kept as their pixels": ("tones.bit_depth < FULL_DEPTH or window", "tones.bit_depth < 16"),
        "inputs of all backgrounds in one place": (
            '(facts.transparency != OPAQUE) & (tones.background != "keep")',
            "False",
        ),
        "inverted scans kept as their pixels": ("(facts.plain ^ True) | ", ""),
    },
)
planted(
    inputs.test_name_of_an_input_shown_otherwise_changes_with_its_file,
    row_names.row_names,
    {"an input named without its file": (" + scan.file_digests[row].tobytes()", "")},
)

_REQUEST = inputs.test_key_of_remembered_facts_changes_with_the_request_libraries_and_processor
planted(
    _REQUEST,
    backbone_info._request,
    {
        "facts of another backbone": ("spec.name, spec.weights,", "spec.weights,"),
        "facts of another side": (", spec.image_size]", "]"),
        "facts of another timm": ('version("timm"), ', ""),
        "facts of another torchvision": (', version("torchvision")', ""),
        "facts of another torch": (', version("torch")', ""),
        "facts of another processor": (", *processor()]", "]"),
        "facts of another seed": ("parts += [spec.seed]", "pass"),
        "facts of another format": ("_FORMAT, spec.name", "spec.name"),
    },
)

_WEIGHTS_FILE = inputs.test_key_of_remembered_facts_changes_with_the_weights_file
planted(
    _WEIGHTS_FILE,
    backbone_info._request,
    {
        "facts of a file of another size": ("state.st_size, ", ""),
        "facts of a file of another time": (", state.st_mtime_ns]", "]"),
    },
)

_IMAGE_FILE = inputs.test_key_of_a_file_changes_with_its_path_target_size_and_time
planted(
    _IMAGE_FILE,
    base_source.file_keys,
    {
        "an image file without its size": ("\\0{state.st_size}", ""),
        "an image file without its time": ("\\0{state.st_mtime_ns}", ""),
        "an image file without the target of its link": ("\\0{file.resolve()}", ""),
    },
)

_FOLDERS = inputs.test_scan_file_changes_with_place_name_and_format
planted(
    _FOLDERS,
    scanning._scan_file,
    {
        "a scan of another folder of that name": ("{source.name}\\0{source.place}", "{source.name}"),
        "a scan of another format": ("{FORMAT}\\0", ""),
    },
)

_PARTITION = assignment.load_or_make_partition
_DEAL = every_case(partitions.test_deal_is_computed_anew_when_a_setting_that_matters_changes)
_RUN = "(config.seed, config.num_clients)"
planted(
    _DEAL,
    _PARTITION,
    {
        "a partition of another seed": (_RUN, "(config.num_clients,)"),
        "a partition of other clients": (_RUN, "(config.seed,)"),
        "a partition by another partitioner": ("[data.partitioner, ", "["),
        "a partition of another share held out": ("data.test_fraction, ", ""),
    },
)
planted(
    partitions.test_deal_is_computed_anew_for_other_content,
    _PARTITION,
    {
        "a partition of other content": ("[scanned.key, hash", "[hash"),
    },
)
planted(
    partitions.test_deal_is_computed_anew_when_another_image_turns_out_bad,
    _PARTITION,
    {
        "a partition of other usable images": ("np.packbits(scan.usable)", "np.packbits(scan.usable[:0])"),
    },
)

_FIGURES = figures.test_every_figure_is_kept_under_all_that_it_depends_on
planted(
    _FIGURES,
    accounting.spent_by,
    {
        "epsilon by RDP of another delta": ('"rdp", (history, delta)', '"rdp", (history,)'),
        "epsilon by PLD of another delta": ("delta, DISCRETIZATION), lambda", "DISCRETIZATION), lambda"),
        "epsilon by PLD on another grid": ("delta, DISCRETIZATION), lambda", "delta), lambda"),
        "epsilon of another history": ('"rdp", (history, delta)', '"rdp", (delta,)'),
    },
)
_CALIBRATED = figures.test_every_calibration_is_kept_under_all_that_it_depends_on
_NOISE_KEY = "(sample_rate, steps, target_epsilon, delta, CURRENT_SAMPLER, *beside, "
for _part in ("sample_rate", "steps", "target_epsilon", "delta", "CURRENT_SAMPLER", "*beside"):
    _shorter = _NOISE_KEY.replace(_part, "0")
    planted(_CALIBRATED, calibration.calibrate, {f"noise of another {_part}": (_NOISE_KEY, _shorter)})

_KINDS = figures.test_figures_of_another_kind_or_other_libraries_are_others
planted(
    _KINDS,
    FigureCache.get_or_compute,
    {
        "a figure of another kind": ("_versions(), kind, key", "_versions(), key"),
        "a figure of other libraries": ("_versions(), kind", "kind"),
        "a figure of another format": ("(_FORMAT, _versions()", "(_versions()"),
    },
)


_ENGINE = every_case(engines.test_wrong_engine_is_not_taken)
planted(
    _ENGINE,
    feature_engine._problem,
    {
        "an engine that differs from PyTorch": ("not exact <= _TOLERANCE", "False"),
        "an engine that gives no number": ("not exact <= _TOLERANCE", "exact > _TOLERANCE"),
        "an engine whose images see each other": ("not torch.equal(", "False and torch.equal("),
        "an engine that is checked at one place": (
            "_features(fast, others).flip(0)",
            "_features(fast, torch.cat([chunk[: CHUNK // 2], others[: CHUNK // 2]]))",
        ),
    },
)


def a_data_set_is_named_by_its_split() -> None:
    nobody, everybody = holding(0, 0), holding(0, 4)
    names = {image_index.content_of(KEYS, "image", parts) for parts in ((nobody, everybody), (everybody, nobody))}
    assert len(names) == 2


_CONTENTS = {case: partial(contents.test_content_of_is_another_for, case=case) for case in contents.OTHER_CONTENT}
_CONTENT_OF, _ROWS = image_index.content_of, "[part.files, part.pixels, first"
planted(
    _CONTENTS["another unit"],
    _CONTENT_OF,
    {
        "a data set without its unit": ("hashlib.sha256(unit.encode())", "hashlib.sha256()"),
    },
)
planted(
    _CONTENTS["another file"],
    _CONTENT_OF,
    {
        "a data set without its files": (_ROWS, "[part.pixels, first"),
    },
)
planted(
    a_data_set_is_named_by_its_split,
    _CONTENT_OF,
    {
        "a data set whose parts run together": ('len(rows).to_bytes(8, "big") + ', ""),
    },
)

_DAMAGED = stores.test_a_damaged_row_counts_as_missing_and_can_be_added_anew
planted(
    _DAMAGED,
    ContentStore.rows_of,
    {
        "a damaged row of features": ("zlib.crc32(stored[row].tobytes()) != self._checksums[row]", "False"),
    },
)
planted(
    keys.test_simulated_keys_follow_from_seed_and_name,
    HolderKeys.simulated,
    {
        "keys of two purposes": ("{purpose}", "keys"),
    },
)
