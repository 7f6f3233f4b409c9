"""Words of secure sums that leave their ring, wrap, or come out from under their masks."""

from functools import partial

from common.secagg.primitives import fixed_point, masks
from common.secagg.primitives.fixed_point import FixedPoint, choose_scale
from common.secagg.primitives.ring import Ring
from common.secagg.protocol import pair_masks
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.round_sum import RoundSum
from tests.common.secagg.primitives import test_fixed_point as numbers
from tests.common.secagg.protocol import test_client_state as states
from tests.common.secagg.protocol import test_whole_rounds as rounds
from tests.mutants.faults import planted

# Masks.
planted(
    partial(states.test_masked_words_are_uniform, bits=40),
    ClientState.mask,
    {"words that leave the ring": ("self.terms.ring.reduced(total)", "total")},
)
planted(
    partial(rounds.test_the_sum_is_exact_in_each_ring, bits=48),
    RoundSum.finish,
    {"a sum that is opened beyond its ring": ("self._setup.terms.ring.reduced(total)", "total")},
)
planted(
    partial(numbers.test_words_of_a_ring_add_up_modulo_its_size_and_travel_in_its_bytes, bits=40),
    Ring.packed,
    {"words that travel with the bits above the ring": ("[:, : self.num_bytes]", "[:, -self.num_bytes :]")},
)
planted(
    numbers.test_a_ring_has_whole_bytes_and_its_words_stay_inside,
    Ring.checked,
    {"words beyond the ring that are masked": ("if int(words.max(initial=0)) >> self.word_bits:", "if False:")},
)
planted(
    numbers.test_parts_of_a_bound_fit_together_and_no_part_exceeds_its_share,
    FixedPoint.part,
    {
        "a part that is the whole": (
            "replace(self, largest=math.floor(self.largest * share), largest_squares=squares)",
            "self",
        )
    },
)
planted(
    partial(numbers.test_squares_are_summed_exactly, most=2**43, chunk_size=7),
    fixed_point._sum_of_squares,
    {"a norm without its mixed terms": (" + (low != high)", "")},
)
planted(
    partial(states.test_masked_words_are_uniform, bits=32),
    masks.mask_words,
    {"masks of whole multiples": ("dtype=ring.dtype)", "dtype=ring.dtype) * 2")},
)
planted(
    rounds.test_the_words_of_a_client_that_is_called_lost_stay_hidden,
    ClientState.mask,
    {"words under pairwise masks alone": ("total += self_mask(self.terms, round_number, seed)", "total += 0")},
)
planted(
    rounds.test_clients_that_were_asked_different_things_give_a_sum_that_says_nothing,
    pair_masks.add_pair_masks,
    {"masks that cancel between different models": ("Domain.PAIR_MASK, context", "Domain.PAIR_MASK")},
)
planted(
    partial(rounds.test_few_clients_sum_without_losses, num_clients=3),
    pair_masks.sign_of,
    {"masks of a pair that do not cancel": ("1 if index < other else -1", "1")},
)
# Numbers.
planted(
    numbers.test_an_encoding_whose_sum_could_wrap_is_refused,
    FixedPoint.__post_init__,
    {"a ring that wraps": ("self.ring.word_bits - 1", "self.ring.word_bits")},
)
planted(
    numbers.test_a_vector_that_the_clip_rounded_up_is_shortened,
    FixedPoint._clipped_steps,
    {"a clip that is not checked after rounding": ("> most:", "> 2 * most:")},
)
planted(
    partial(numbers.test_a_vector_with_a_value_that_is_not_finite_becomes_zero, bad=float("nan")),
    FixedPoint._clipped_steps,
    {"a vector that is not finite": ("not np.all(np.isfinite(values)) or", "")},
)
planted(
    partial(numbers.test_no_finer_step_would_fit, norm=1.0),
    choose_scale,
    {"a step coarser than needed": ("- 1) / norm)", "- 1) / norm) - 1")},
)
planted(
    partial(numbers.test_decoding_returns_the_exact_sum, bits=32),
    Ring.signed,
    {"negative sums that come back as huge ones": ('self.dtype.str.replace("u", "i")', "self.dtype.str")},
)
