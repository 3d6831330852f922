"""Class-balanced sampling: images of rare classes come more often, in epochs of one length that can be repeated."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from detkit.data.checks import RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.data.repeat_factors import describe_repeats, repeat_factors
from detkit.data.sampler import BatchSampler, Key, systematic_counts
from detkit.structures import Categories
from tests.data.writers import write_picture

NAMES = ("common", "rare", "scarce", "absent")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ImageDataset]:
    """An image for each word, whose letters c, r and s are its objects, and further ignored ones of some images."""
    picture = tmp_path_factory.mktemp("words") / "any.png"
    write_picture(picture, (10, 10))

    def build(words: Sequence[str], ignored: Mapping[int, str] = MappingProxyType({})) -> ImageDataset:
        images = []
        for number, word in enumerate(words):
            letters = [(letter, False) for letter in word] + [(letter, True) for letter in ignored.get(number, "")]
            objects = [
                RawObject(f"object {row}", "crs".index(letter), (1, 1, 5, 5), columns={"ignore": ignore})
                for row, (letter, ignore) in enumerate(letters)
            ]
            images.append(RawImage(number, str(picture), "here", (10, 10), objects))
        return ImageDataset(images, name="words", categories=Categories.of_names(NAMES), decode=False)

    return build


Build = Callable[..., ImageDataset]


class TestFactors:
    """Ten images. At a threshold of 0.4: common in 8 of 10: 1; rare in 1 of 10: sqrt(0.4 / 0.1) = 2; scarce in 2 of 10:
    sqrt(0.4 / 0.2) = sqrt(2). The image with both has the larger one."""

    WORDS = ("c", "cc", "c", "c", "crs", "css", "c", "c", "", "")

    def test_by_hand(self, dataset: Build) -> None:
        factors = repeat_factors(dataset(self.WORDS), 0.4)
        np.testing.assert_allclose(factors, [1, 1, 1, 1, 2, math.sqrt(2), 1, 1, 1, 1])

    def test_ignored_objects_do_not_count(self, dataset: Build) -> None:
        factors = repeat_factors(dataset(self.WORDS, ignored={0: "r", 1: "s", 8: "s"}), 0.4)
        np.testing.assert_allclose(factors, [1, 1, 1, 1, 2, math.sqrt(2), 1, 1, 1, 1])

    def test_nothing_is_repeated_where_no_class_is_rarer(self, dataset: Build) -> None:
        assert repeat_factors(dataset(self.WORDS), 0.1).tolist() == [1] * 10
        assert repeat_factors(dataset(["", ""]), 0.5).tolist() == [1, 1]

    def test_against_a_slow_reference(self, dataset: Build) -> None:
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("crs"), rng.integers(0, 5), p=(0.8, 0.05, 0.15))) for _ in range(60)]
        for threshold in (0.01, 0.2, 1.0):
            expected = []
            for word in words:
                shares = [sum(letter in other for other in words) / len(words) for letter in word]
                expected.append(max([1.0, *(math.sqrt(threshold / share) for share in shares)]))
            np.testing.assert_allclose(repeat_factors(dataset(words), threshold), expected)

    def test_the_log_says_which_classes_come_more_often(self, dataset: Build) -> None:
        assert describe_repeats(dataset(self.WORDS), 0.4) == (
            "loader.repeat_threshold 0.4 of 10 images: rare (in 1) x 2.00, scarce (in 2) x 1.41; an epoch has about 11"
        )
        assert "no class is rarer" in describe_repeats(dataset(self.WORDS), 0.05)


class TestCounts:
    @pytest.mark.parametrize(
        "expected", [[], [1.0], [1.0] * 7, [1.5, 1.5], [2.25, 1, 1, 1.25], [1.3, 1, 7.77, 1, 1.0001, 3]]
    )
    def test_each_is_rounded_to_a_sum_that_is_fixed(self, expected: list[float]) -> None:
        total = math.ceil(sum(expected))
        stretched = np.array(expected) * total / max(sum(expected), 1)
        seen = [systematic_counts(np.array(expected), np.random.default_rng(seed)) for seed in range(1000)]
        for counts in seen:
            assert counts.sum() == total
            assert ((counts == np.floor(stretched)) | (counts == np.ceil(stretched))).all()
        if expected:
            np.testing.assert_allclose(np.mean(seen, axis=0), stretched, atol=0.05)

    def test_against_a_slow_reference(self) -> None:
        expected = np.random.default_rng(0).uniform(1, 4, 40)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            order, start = rng.permutation(40).tolist(), rng.random()
            stretch = math.ceil(expected.sum()) / expected.sum()
            slow, begin = [0] * 40, 0.0
            for index in order:
                end = begin + expected[index] * stretch
                slow[index] = sum(begin <= start + k < end for k in range(200))
                begin = end
            assert systematic_counts(expected, np.random.default_rng(seed)).tolist() == slow


class TestSampler:
    RATIOS = np.array([2.0, 0.5, 1.0, 0.7, 1.5, 2.0, 0.6, 1.2, 1.3])
    REPEATS = np.array([1.0, 2.5, 1.7, 1.0, 1.0, 3.2, 1.4, 1.0, 1.0])

    def sampler(self, **changes: object) -> BatchSampler:
        settings = {"batch_size": 2, "seed": 3, "shuffle": True, "aspect_grouping": True, "repeats": self.REPEATS}
        return BatchSampler(self.RATIOS, **{**settings, **changes})  # type: ignore[arg-type]

    def epoch(self, number: int, **changes: object) -> list[list[Key]]:
        sampler = self.sampler(**changes)
        sampler.set_epoch(number)
        return list(sampler)

    @pytest.mark.parametrize("aspect_grouping", [True, False])
    def test_epochs_have_one_length(self, aspect_grouping: bool) -> None:
        """Wide images: factors 1 + 1.7 + 1 + 3.2 + 1 + 1 = 8.9, so 9 images; upright ones: 4.9, so 5."""
        epochs = [self.epoch(number, aspect_grouping=aspect_grouping) for number in range(40)]
        assert {sum(map(len, batches)) for batches in epochs} == {14}
        assert {len(batches) for batches in epochs} == {len(self.sampler(aspect_grouping=aspect_grouping))}
        counts = Counter(key.image for batches in epochs for keys in batches for key in keys)
        for image, factor in enumerate(self.REPEATS):
            assert counts[image] / 40 == pytest.approx(factor, abs=0.25)
            assert counts[image] >= 40

    def test_copies_are_augmented_differently_and_the_first_as_without_repeats(self) -> None:
        keys = [key for batch in self.epoch(1) for key in batch]
        assert len({key.seed for key in keys}) == len(keys)
        plain = {key.seed for batch in self.epoch(1, repeats=None) for key in batch}
        assert plain <= {key.seed for key in keys}

    def test_an_epoch_can_be_repeated_and_the_next_differs(self) -> None:
        assert self.epoch(4) == self.epoch(4)
        images = [Counter(key.image for keys in self.epoch(number) for key in keys) for number in range(6)]
        assert any(other != images[0] for other in images)

    def test_ranks_share_the_images_of_one(self) -> None:
        ranks = [self.epoch(2, rank=rank, world_size=2) for rank in (0, 1)]
        for whole, *parts in zip(self.epoch(2, batch_size=4), *ranks, strict=True):
            assert Counter(key for part in parts for key in part) >= Counter(whole)

    def test_evaluation_repeats_nothing(self) -> None:
        assert [key.image for keys in self.epoch(0, shuffle=False) for key in keys] == list(range(9))
